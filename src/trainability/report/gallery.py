"""The figures of a comparison, each with a sentence on what to see in it and a note on how it was measured."""

from plotly.graph_objects import Figure

from trainability.experiments.comparison import Comparison
from trainability.report import figures, layer_figures
from trainability.report.plots import Plot, plot
from trainability.tasks import Loss

_Drawn = tuple[str, str, Figure | None, str]


def first_picture(arms: figures.Arms, palette: dict[str, str], comparison: Comparison) -> Plot:
    """The scores during training."""
    task = comparison.task
    look = "One line per seed: look for lines that leave the others early and stay together."
    return plot(
        f"{task.metric.name.capitalize()} during training",
        look,
        figures.score_figure(arms, palette, task, comparison.chance),
    )


def gallery(arms: figures.Arms, palette: dict[str, str], comparison: Comparison) -> list[Plot]:
    """All figures but the first for which there is something to draw."""
    task, samples = comparison.task, int(comparison.data.get("train") or 0)
    drawn: list[_Drawn] = [
        (
            "Spread over seeds",
            "Remedies whose points do not overlap differ by more than the seeds do.",
            figures.spread_figure(arms, palette, task.metric),
            "Every point is one seed; the line in the box is the median.",
        ),
        (
            "Information in every layer, step by step",
            "Dark layers carry nothing: all inputs look alike there. Drag the slider through training.",
            figures.entropy_figure(arms),
            "Batch entropy of each hidden layer of each run.",
        ),
        (
            "Information over the whole training",
            "A network wakes where dark turns to bright, from left to right.",
            figures.history_figure(arms, task.metric),
            f"The run of median {task.metric.name} of each remedy. The steps lie denser at the start.",
        ),
        (
            "Size and angle of the signal in every layer",
            "Where c nears 1 all inputs look alike; where q leaves its range the signal dies or explodes.",
            layer_figures.signal_figure(arms, palette),
            f"q is the mean square, c the mean cosine over pairs of {min(128, samples)} training samples; one line per "
            "seed. Dashed: what theory predicts before training, from the scale of the weights of the first seed.",
        ),
        (
            "Independence of what weight layers receive",
            "The lower, the more independent the neurons that a weight layer receives.",
            layer_figures.independence_figure(arms, palette),
            f"Pairs of neurons over {min(256, samples)} training samples in training mode: mean |correlation| (about "
            f"{0.8 / max(1, min(256, samples)) ** 0.5:.2f} where there is none), and mutual information by nearest "
            "neighbors, which scatters around 0 where there is none.",
        ),
        (
            "What Dropout in an IC layer does to two neurons",
            "Dots on the dashed line are as the theorem has it.",
            layer_figures.dropout_figure(arms),
            "The two most dependent neurons that the middle IC layer normalizes, after training, under 16 masks; dots "
            "show what is left (bars: two standard errors). Dashed: the theorem, for neurons of mean zero, and what "
            "becomes of it when the mean is their standard deviation. Rings: an estimate that does not know the masks, "
            "and is off by some hundredths of a nat.",
        ),
        _loss(arms, palette, task.loss),
        (
            "Learned alpha",
            "The target that each layer settled on.",
            figures.alpha_figure(arms, palette),
            "A target at alpha_min no longer learns.",
        ),
        (
            "Single neurons",
            "A single bar means that the neuron gives every input the same value.",
            figures.neuron_figure(arms),
            f"One neuron of median variance before its nonlinearity, over {min(512, samples)} training samples, before "
            "(gray) and after training; first seed.",
        ),
    ]
    return [plot(title, look, figure, how) for title, look, figure, how in drawn if figure is not None]


def _loss(arms: figures.Arms, palette: dict[str, str], loss: Loss) -> _Drawn:
    title, figure = loss.name.capitalize(), figures.loss_figure(arms, palette, loss)
    if any(point.lbe is not None for runs in arms.values() for run in runs for point in run.losses):
        look = "A term that falls while the loss stands still is opening the layers."
        return f"{title} and the LBE term", look, figure, "Apart, since the total loss multiplies them."
    return title, "A loss that stands still is not training.", figure, "The mean since the last such point."
