"""What is private to torch is used in one file, which is the one to look at when torch changes."""

import ast
from pathlib import Path

import torch

import trainability
from trainability.introspect import torch_private

ROOT = Path(trainability.__file__).parent
# Of a module, and named in the text of the file; and of optuna.
ELSEWHERE = {
    "_parameters",
    "_buffers",
    "_modules",
    "_apply",
    "_load_from_state_dict",
    "_trial_id",
    "_backend",
    "_exit",
    "_fields",
    "_replace",
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own(tree: ast.AST) -> set[str]:
    """Private names that a file defines: functions, classes, variables, fields and attributes of self."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def uses(tree: ast.AST):
    """Private names that a file takes from elsewhere: attributes, imports, and strings that name some."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            yield from filter(private, [*(node.module or "").split("."), *(alias.name for alias in node.names)])
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split(".") if private(part))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "torch._" in node.value:
            yield node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and private(str(name.value)):
                yield name.value


def test_what_is_private_to_torch_is_used_in_one_file():
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        if path != Path(torch_private.__file__) and (others := set(uses(tree)) - own(tree) - ELSEWHERE):
            found[str(path.relative_to(ROOT))] = others
    assert found == {}


def test_the_fast_ways_are_there_in_this_torch():
    x = torch.ones(3, requires_grad=True)
    seen = []
    y = x * 2
    y.register_hook(lambda _: seen.append(torch_private.current_graph_task()))
    y.sum().backward()
    assert torch_private.current_graph_task() == -1
    assert seen[0] >= 0
    assert not torch_private.saving_hooks(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert torch_private.saving_hooks(True)
    assert not torch_private.is_wrapped(x)
    wrapped = []
    torch.func.vmap(lambda t: wrapped.append(torch_private.is_wrapped(t)) or t)(torch.ones(2, 3))
    assert wrapped == [True]


def test_versions_count_changes_in_place():
    x = torch.zeros(3)
    before = torch_private.version_of(x)
    x.add_(1)
    assert torch_private.version_of(x) == before + 1
    torch_private.set_version(x, before)
    assert torch_private.version_of(x) == before
