"""The numbers of the data-set memory's module, checked where they come in."""

from dataclasses import dataclass

from ..terms import TrainingProgress
from ..terms.base import require_positive

NODE = "MODEL.DATASET_MEMORY"
FUSIONS = ("attention", "concat")
READS = ("soft", "hard", "zeros")
SCHEDULES = ("lr", "constant")


@dataclass(frozen=True)
class NetworkOptions:
    """What is built.

    Attributes:
        channels: D, of pixel representations, memory and output.
        key_channels: of the attentions' queries, keys and values.
        norm: name of the norm layers.
        dropout: share of channels, before each classifier.
        fusion: of the context within the image, "attention" or "concat".
        context_head: classify the context as well, and read the memory with that.
        read: "soft": by class probabilities; "hard": the likeliest class alone; "zeros": zeros in
            place of the memory, to see what the module does without it.
        align_corners: where maps are brought to one grid.
        second_pass: (), or the weights of the reading logits and of the first pass' final logits.
    """

    channels: int = 512
    key_channels: int = 256
    norm: str = "BN"
    dropout: float = 0.1
    fusion: str = "attention"
    context_head: bool = False
    read: str = "soft"
    align_corners: bool = False
    second_pass: tuple[float, ...] = ()

    def check(self, *, with_context: bool, decoder_channels: int) -> None:
        """
        Args:
            with_context: whether the decoder gives a context within the image.
            decoder_channels: of its output.

        Raises:
            ValueError: a value out of its range, or one that does not fit the decoder.
        """
        require_positive(NODE, CHANNELS=self.channels, KEY_CHANNELS=self.key_channels)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{NODE}.DROPOUT has to be in [0, 1), got {self.dropout}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"{NODE}.CONTEXT_FUSION is {self.fusion!r}; known are {list(FUSIONS)}")
        if self.read not in READS:
            raise ValueError(f"{NODE}.READ is {self.read!r}; known are {list(READS)}")
        if self.second_pass and (len(self.second_pass) != 2 or min(self.second_pass) < 0):
            raise ValueError(
                f"{NODE}.SECOND_PASS is {list(self.second_pass)}; it has to be empty, or two "
                "weights that are not negative: of the reading logits, and of the final ones"
            )
        if not with_context and decoder_channels != self.channels:
            raise ValueError(
                f"the decoder's output of {decoder_channels} channels is what the memory stores, "
                f"and {NODE}.CHANNELS is {self.channels}; make them equal "
                "(MODEL.SEM_SEG_HEAD.FCN.CHANNELS)"
            )


@dataclass(frozen=True)
class TrainingOptions:
    """How it is trained.

    Attributes:
        momentum: share of what is new in an update.
        schedule: "lr": the momentum follows the learning rate's schedule; "constant".
        stage1_weight: of the cross-entropy of stage 1.
        context_weight: of the context head's.
        consistency_weight: of representation-consistent learning; 0 = none.
        consistency_start: fraction of the training before it.
    """

    momentum: float = 0.9
    schedule: str = "lr"
    stage1_weight: float = 0.4
    context_weight: float = 1.0
    consistency_weight: float = 0.0
    consistency_start: float = 0.01

    def check(self, *, with_hidden_context: bool) -> None:
        """
        Args:
            with_hidden_context: whether the classifier's hidden layer reads the context, too.

        Raises:
            ValueError: a value out of its range, or one that asks for what cannot be.
        """
        require_positive(NODE, STAGE1_LOSS_WEIGHT=self.stage1_weight)
        if not 0 < self.momentum <= 1:
            raise ValueError(f"{NODE}.MOMENTUM has to be in (0, 1], got {self.momentum}")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"{NODE}.MOMENTUM_SCHEDULE is {self.schedule!r}; known are {list(SCHEDULES)}"
            )
        if self.context_weight < 0 or self.consistency_weight < 0:
            raise ValueError(
                f"{NODE}.CONTEXT_LOSS_WEIGHT {self.context_weight} and CONSISTENCY.LOSS_WEIGHT "
                f"{self.consistency_weight} must not be negative"
            )
        if not 0 <= self.consistency_start <= 1:
            raise ValueError(
                f"{NODE}.CONSISTENCY.START is a fraction of the training in [0, 1], "
                f"got {self.consistency_start}"
            )
        if self.consistency_weight and with_hidden_context:
            raise ValueError(
                f"{NODE}.CONSISTENCY.LOSS_WEIGHT is {self.consistency_weight}, but with "
                "CONTEXT_FUSION 'concat' the classifier reads the context as well, of which the "
                "memory holds none; take 'attention', or weight 0"
            )

    def momentum_at(self, progress: TrainingProgress) -> float:
        """The momentum in this step."""
        return self.momentum * (progress.lr_factor if self.schedule == "lr" else 1.0)
