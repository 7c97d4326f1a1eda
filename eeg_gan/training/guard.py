"""Steps whose gradient is not finite: left out, counted, and answered by going back when there are many."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from eeg_gan.config import UserError

log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class GuardConfig:
    bad_steps: int = 8  # left-out steps between two looks, or of one kind in a row, after which the run goes back
    every: int = 16  # batches between two looks
    rollbacks: int = 3  # how often a run goes back before it gives up

    def __post_init__(self):
        if self.bad_steps < 1 or self.every < 1 or self.rollbacks < 0:
            raise ValueError("bad_steps and every are 1 or more, rollbacks 0 or more")


class Guard:
    """Takes the steps of optimisers; counts stay on the device until they are looked at."""

    def __init__(self, config: GuardConfig):
        self.config, self.rollbacks, self.total = config, 0, 0
        self.bad: Tensor | float = 0.0
        self.streaks: dict[str, Tensor | float] = {}  # left-out steps in a row, of each kind: some come seldom

    def step(self, optimiser: torch.optim.Optimizer, kind: str = "step", clip_norm: float | None = None) -> Tensor:
        """One step unless a gradient is not finite; returns the norm of the gradient before it is clipped.

        Fused optimisers leave a step out by themselves where `found_inf` is 1, without a word to the host.
        """
        learning = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in learning])
        if clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(learning, clip_norm, norm)
        bad = (~norm.isfinite()).float()
        optimiser.found_inf = bad
        optimiser.step()
        self.count(bad, kind)
        return norm

    def count(self, bad: Tensor, kind: str) -> None:
        """Counts a step of some kind that was left out (1) or taken (0)."""
        self.bad = self.bad + bad
        self.streaks[kind] = (self.streaks.get(kind, 0.0) + bad) * bad

    def healthy(self) -> bool:
        """False from the first left-out step to the next look: weights of then are not to go back to."""
        return not int(self.bad) and not any(int(streak) for streak in self.streaks.values())

    def must_go_back(self) -> bool:
        """Looks at the count and forgets it; every rank has averaged the same gradients and says the same."""
        bad, self.bad = int(self.bad), 0.0
        self.total += bad
        if bad:
            log.warning("%d steps with gradients that are not finite were left out", bad)
        longest = max((int(streak) for streak in self.streaks.values()), default=0)
        return max(bad, longest) >= self.config.bad_steps

    def go_back(self, images: int, to: int) -> None:
        """Counts a return to the checkpoint at `to` images; random draws differ from then on."""
        self.rollbacks += 1
        self.bad, self.streaks = 0.0, {}
        if self.rollbacks > self.config.rollbacks:
            raise UserError(
                f"training diverged: gradients were not finite again at {images} images after "
                f"{self.config.rollbacks} returns to the last checkpoint; lower g_optim.lr and d_optim.lr, raise "
                "r1_gamma, or set precision=float32, and start anew from that checkpoint with transfer.run"
            )
        log.warning("at %d images gradients are not finite: going back to %d images", images, to)

    def state_dict(self) -> dict:
        streaks = {kind: int(streak) for kind, streak in self.streaks.items()}
        return {"bad": int(self.bad), "total": self.total, "rollbacks": self.rollbacks, "streaks": streaks}

    def load_state_dict(self, state: dict) -> None:
        self.bad, self.total, self.rollbacks = float(state["bad"]), state["total"], state["rollbacks"]
        self.streaks = {kind: float(streak) for kind, streak in state["streaks"].items()}
