"""Means and correlations with 95% intervals."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Generator, Tensor

# Student's t, two-sided 95%, of 1 to 30 degrees of freedom.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
        2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
        2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def student_t(freedom: int) -> float:
    return T_95[freedom - 1] if freedom <= len(T_95) else 1.96 + 2.4 / freedom


def half_interval(deviation: float, number: int) -> float:
    """Half of the mean's 95% interval, of so many values with this standard deviation."""
    return student_t(number - 1) * deviation / math.sqrt(number)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95% interval; of one value there is none (nan)."""
    return statistics.mean(values), (math.nan if len(values) == 1 else half_interval(
        statistics.stdev(values), len(values)))


def number_to_tell(values: Sequence[float], apart: float) -> int:
    """How many values that scatter like these have an interval too narrow to hold two numbers that
    are so far apart."""
    deviation = statistics.stdev(values)
    return next(n for n in itertools.count(2) if 2 * half_interval(deviation, n) < abs(apart))


def shown(values: Sequence[float], form: str = "{:.3f}") -> str:
    """ "0.612 ± 0.034" """
    mean, half = interval(values)
    return form.format(mean) + ("" if math.isnan(half) else
                                f" ± {form.replace('+', '').format(half)}")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column names the rows."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def zeros_text(scores: Mapping[str, Sequence[float]]) -> str:
    """Motion fidelities by row -> a sentence on those that are 0: nothing followed, or moving."""
    counts = {name: sum(score == 0 for score in each) for name, each in scores.items()}
    return ("Clips in which no moving point was followed, so that motion fidelity is 0: "
            + (", ".join(f"*{name}* {count}" for name, count in counts.items() if count) or "none")
            + ".")


def pearson(x: Tensor, y: Tensor) -> float:
    """Correlation of two columns (n); nan if one is constant."""
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


def places(x: Tensor) -> Tensor:
    """Of each of (n) its place in order; equal ones share theirs."""
    return ((x[:, None] > x).sum(1) + (x[:, None] >= x).sum(1) - 1) / 2


def spearman(x: Tensor, y: Tensor) -> float:
    return pearson(places(x), places(y))


def bootstrap(of: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, groups: Sequence[str],
              draws: int = 1000) -> tuple[float, float, float]:
    """`of` all, and its 95% interval: the middle of what it is of groups drawn with repetition."""
    members = [torch.tensor([i for i, each in enumerate(groups) if each == name])
               for name in dict.fromkeys(groups)]
    generator, found = Generator().manual_seed(0), []
    for _ in range(draws):
        drawn = torch.randint(len(members), (len(members),), generator=generator).tolist()
        chosen = torch.cat([members[i] for i in drawn])
        found.append(of(x[chosen], y[chosen]))
    low, high = torch.tensor(found).nanquantile(torch.tensor([0.025, 0.975])).tolist()
    return of(x, y), low, high
