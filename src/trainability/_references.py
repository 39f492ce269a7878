"""Objects of the user's own, named as ``file.py:name`` or ``package.module:name``, and the place of their errors."""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from trainability.errors import ConfigError, TrainabilityError, suggestion

_HERE = str(Path(__file__).parent)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_IN_WORKER = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def is_reference(name: object) -> bool:
    """Return whether a name is that of an object in a file or module.

    >>> is_reference("mine.py:make_model"), is_reference("fnn")
    (True, False)
    """
    return isinstance(name, str) and ":" in name and "://" not in name


def file_of(reference: str) -> Path | None:
    """The file that a reference names; None where it names a module."""
    place = reference.rpartition(":")[0]
    return Path(place) if place.endswith(".py") else None


def load(reference: str) -> Any:
    """Import what a reference names, and nothing else.

    Raises:
        ConfigError: there is no such file, module or name, or importing it raises; the message names the place.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"{reference} names no object; write file.py:name or package.module:name", code="reference")
    with naming_the_place(place):
        module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    try:
        return getattr(module, name)
    except AttributeError:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"{place} has no {name}; {suggestion(name, own)}", code="reference") from None


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ConfigError(f"there is no file {path}; {suggestion(path.name, near)}".rstrip("; "), code="reference")
    folder, whole = str(path.resolve().parent), str(path.resolve())
    other = f"{path.stem}_{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"  # where the name is taken
    name = path.stem
    for known in (sys.modules.get(name), sys.modules.get(other)):
        if known is not None and getattr(known, "__file__", None) == whole:
            return known
    if name in sys.modules or name in sys.stdlib_module_names:
        name = other
    main = sys.modules["__main__"]
    if (script := getattr(main, "__file__", None)) and Path(script).resolve() == path.resolve():
        return main  # the script that is running
    if folder not in sys.path:  # as if the file were run: it may import its neighbors
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pickle and dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _from_package(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"there is no module {error.name}; a file is named with its ending: {name.replace('.', '/')}.py:name",
                code="reference",
            ) from None
        raise


def reference_to(thing: Any) -> str:
    """A reference by which a function or class is known in a record, and from which it can be loaded if it has a name.

    >>> from trainability.models import fnn
    >>> reference_to(fnn)
    'trainability.models.fnn:fnn'
    """
    name = str(getattr(thing, "__qualname__", None) or type(thing).__qualname__)
    module = str(getattr(thing, "__module__", None) or type(thing).__module__)
    if module == "__main__" and (file := getattr(sys.modules["__main__"], "__file__", None)):
        module = _shown(file)
    return f"{module}:{name}"


def source_of(reference: str) -> str | None:
    """The text of the file that a reference names, None where it cannot be read."""
    try:
        path = file_of(reference)
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def code_of(thing: Any) -> str | None:
    """The source of a function or class; None where there is none."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return None


@contextmanager
def naming_the_place(what: str = "") -> Iterator[None]:
    """Within it, an error of the user's code is one sentence with the place in the user's file.

    Raises:
        ConfigError: in place of any error that was raised in, or below, a file that is neither a library's nor ours.
    """
    try:
        yield
    except TrainabilityError:
        raise
    except Exception as error:
        place = _place(error, what)
        if place is None:
            raise
        raise ConfigError(f"{place}: {_sentence(error)}", code="own-code") from error


def _place(error: BaseException, what: str) -> str | None:
    """File, line and function of the last frame of the user's own."""
    if isinstance(error, SyntaxError) and error.filename and _is_own(error.filename):
        return f"{_shown(error.filename)}:{error.lineno}"
    frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)]
    worker = _IN_WORKER.findall(str(error)) if "Original Traceback" in str(error) else []
    for file, line, function in reversed([*frames, *worker]):
        if _is_own(file):
            return f"{_shown(file)}:{line} in {function}"
    return what or None


def place_of_frame(frame: FrameType | None) -> str | None:
    """File, line and function of a frame, or of the nearest of its callers that is the user's own."""
    while frame is not None:
        if _is_own(frame.f_code.co_filename):
            return f"{_shown(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return None


def _is_own(file: str) -> bool:
    return file.startswith("<ipython") or not file.startswith(("<", _HERE, *_LIBRARIES))


def _shown(file: str) -> str:
    """A path as short as it can be told here."""
    try:
        return str(Path(file).resolve().relative_to(Path.cwd()))
    except ValueError:
        return file


def _sentence(error: BaseException) -> str:
    """Kind and message of an error, of an error in a worker the original one, on one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if "Original Traceback" in str(error):
        return lines[-1][:300]
    message = lines[0][:300] if lines else ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
