"""What training a network costs: operations, and how much of a machine's peak a run made of them.

A multiplication and an addition are two operations, as everywhere in the field. Only matrix
products are counted: norms, softmax and activations are less than a hundredth of a large network.
"""

import dataclasses

from gptj_lab.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
    """Operations for one token of the forward pass.

    Attributes:
        blocks: the matrices of the blocks, 2 for each weight.
        attention: scores and their weighted sums over a window, the whole square of it, as the
            masked half is computed too. A local window still computes the square.
        head: logits. The embedding is a look-up and costs nothing.
    """

    blocks: int
    attention: int
    head: int

    @property
    def forward(self) -> int:
        """All of the forward pass."""
        return self.blocks + self.attention + self.head

    def training(self, *, attention: bool = True, recomputed: bool = False) -> int:
        """A forward and a backward pass, which costs two forward passes.

        Args:
            attention: whether it counts.
            recomputed: whether the second forward pass of rematerialised blocks counts too. What a
                model needs doesn't contain it, what the hardware does, does.
        """
        inside = self.blocks + (self.attention if attention else 0)
        return 3 * (inside + self.head) + (inside if recomputed else 0)


def operations(config: ModelConfig, context: int | None = None) -> Operations:
    """Operations for one token of the forward pass, in windows of `context` tokens.

    Raises:
        ValueError: `context` is no whole number from 1 to the model's own, its default.
    """
    context = config.context if context is None else context
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise ValueError(f"context is {context!r}: a whole number of at least 1 is needed")
    if context > config.context:
        raise ValueError(f"context is {context}: the model has {config.context} positions at most")
    matrices = 4 * config.d_model**2 + 2 * config.d_model * config.d_ff
    return Operations(
        blocks=2 * config.num_layers * matrices,
        attention=4 * config.num_layers * context * config.d_model,
        head=2 * config.vocab_size * config.d_model,
    )


def six_n(config: ModelConfig) -> int:
    """6 operations a parameter and token: training as Kaplan et al. (2020) and GPT-3 count it."""
    return 6 * config.num_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A training run on paper.

    Attributes:
        config: the network.
        tokens: that it sees.
        peak: operations a second that the whole machine could do.
        context: tokens of a window; by default the model's own.
        recomputed: whether the blocks are rematerialised.

    Raises:
        ValueError: a number is not positive, or the context doesn't suit the model.
    """

    config: ModelConfig
    tokens: float
    peak: float
    context: int | None = None
    recomputed: bool = True

    def __post_init__(self) -> None:
        for name in ("tokens", "peak"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} is {value!r}: a positive number is needed")
        operations(self.config, self.context)

    @property
    def total(self) -> float:
        """6 N D: operations of the whole run as the tables of published models give them."""
        return six_n(self.config) * self.tokens

    @property
    def exact(self) -> float:
        """Operations of the whole run that the model needs: matrices, head and attention."""
        return operations(self.config, self.context).training() * self.tokens

    def tokens_per_second(self, speed: float) -> float:
        """Of a run that makes `speed` operations a second, counted as 6 N."""
        return speed / six_n(self.config)

    def days(self, speed: float) -> float:
        """That the run takes without a stop at `speed` operations a second, counted as 6 N."""
        return self.total / speed / 86400

    def share_of_peak(self, speed: float) -> float:
        """`speed`, counted as 6 N, over the peak: the utilisation as the GPT-3 paper counts."""
        return speed / self.peak

    def mfu(self, speed: float) -> float:
        """Model FLOPs utilisation (Chowdhery et al. 2022): attention counts, recomputing doesn't.

        Args:
            speed: operations a second, counted as 6 N.
        """
        needed = operations(self.config, self.context).training()
        return self.tokens_per_second(speed) * needed / self.peak

    def hfu(self, speed: float) -> float:
        """Hardware FLOPs utilisation: all that the machine computes, recomputing too.

        Args:
            speed: operations a second, counted as 6 N.
        """
        done = operations(self.config, self.context).training(recomputed=self.recomputed)
        return self.tokens_per_second(speed) * done / self.peak
