import subprocess
import sys

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name, name=name)
sys.meta_path.insert(0, Block())
{code}
"""
EXTRAS = [
    "click",
    "rich",
    "pydantic",
    "ruamel",
    "jinja2",
    "plotly",
    "sklearn",
    "datasets",
    "torchvision",
    "pandas",
]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=EXTRAS, code=code)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_needs_torch_alone():
    code = """
import torch, trainability as tr
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
print(tr.measure(model, torch.randn(8, 4)), tr.LBE(model))
assert not {"trainability.training", "trainability.report"} & set(sys.modules)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_program_and_plot_without_their_extras_say_what_to_install():
    done = python("from trainability.__main__ import main; main()")
    assert done.returncode == 2
    assert "pip install 'trainability[experiments]'" in done.stderr
    done = python(
        "import torch, trainability as tr; m = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU());"
        "tr.measure(m, torch.randn(8, 4), where='1').plot()"
    )
    assert "plot() needs plotly" in done.stderr


def test_import_leaves_the_process_as_it_was():
    code = """
import torch
before = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed())
import logging, warnings
handlers, filters = list(logging.getLogger().handlers), list(warnings.filters)
import trainability
assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed())
assert handlers == logging.getLogger().handlers and filters == list(warnings.filters)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_names_load_on_first_use_and_all_of_them_do():
    code = """
import sys
import trainability
assert not {"torch", "numpy", "pydantic", "trainability.remedies"} & set(sys.modules)
assert set(trainability.__all__) <= set(dir(trainability))
for name in trainability.__all__:
    getattr(trainability, name)
try:
    trainability.nothing_of_the_kind
except AttributeError:
    print("done")
"""
    done = python(code)
    assert done.stdout == "done\n", done.stderr
