"""What ``distill`` hands back: the figures of ``summary.json``, and where the student is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.io.text import counted, human_bytes, one_line

HELP_PAGE = "docs/how-to/my-student-is-not-good.md"
"""Where it says what a student that is no better than before may come from."""


def came_no_nearer(summary: Mapping[str, Any]) -> bool:
    """Whether CKA to the teacher on held-out views did not rise: the unbiased one, where the run has it."""
    for name in ("cka_unbiased", "cka"):
        before, after = (summary.get(f"{name}_{when}") for when in ("before", "after"))
        if before is not None and after is not None:
            return bool(after <= before)
    return False


def to_teacher(summary: Mapping[str, Any]) -> str:
    """What the figures of a run are compared with: the teacher, or the mean over several."""
    several = summary.get("teachers") or ()
    return f"to the {len(several)} teachers (mean)" if several else "to the teacher"


def of_features(summary: Mapping[str, Any]) -> str:
    """Whose features a student explains a part of."""
    return "teachers' features (mean)" if summary.get("teachers") else "teacher's features"


def by_teacher(summary: Mapping[str, Any], arrow: str) -> list[tuple[str, dict[str, str]]]:
    """The agreement with each of several teachers, before and after, by the name of its store; empty for one."""
    forms = {"cka": "{:.3f}", "cka_unbiased": "{:.3f}", "cosine": "{:.3f}", "explained": "{:.1%}"}
    found = []
    for store, about in (summary.get("teachers") or {}).items():
        changes = {}
        for name, form in forms.items():
            before, after = about.get(f"{name}_before"), about.get(f"{name}_after")
            if before is not None and after is not None:
                changes[name] = f"{form.format(before)} {arrow} {form.format(after)}"
        found.append((f"{about['teacher']} ({store})", changes))
    return found


@dataclass(frozen=True, slots=True)
class Distilled:
    """A finished training."""

    run: Path
    """Folder of the run."""
    figures: Mapping[str, Any]
    """What ``summary.json`` holds; empty in the processes of a ``torchrun`` that are not the first."""

    @property
    def student(self) -> Path:
        """Folder of the student, which `pipeline.load_encoder` and timm open."""
        return self.run / "student"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.figures)

    def lines(self) -> list[str]:
        """The same as text."""
        found = self.figures
        if not found:
            return []
        early = ", stopped early" if found["stopped_early"] else ""
        lines = [
            f"{found['steps']} of {found['steps_planned']} steps{early}: "
            f"loss {found['loss_first']:.3f} -> {found['loss_last']:.3f}"
        ]
        if found.get("skipped_steps"):
            lines.append(
                f"{counted(found['skipped_steps'], 'step')} skipped: the gradient overflowed float16"
            )
        if found["cka_after"] is not None:
            names = {"cka": f"CKA {to_teacher(found)}", "cka_unbiased": "unbiased", "cosine": "cosine"}
            held_out = [
                f"{words} {found[f'{name}_before']:.3f} -> {found[f'{name}_after']:.3f}"
                for name, words in names.items()
                if found.get(f"{name}_before") is not None and found.get(f"{name}_after") is not None
            ]
            if "cka_ema_after" in found:
                held_out.append(f"CKA of the moving average {found['cka_ema_after']:.3f}")
            lines.append(f"held out: {', '.join(held_out)}")
            lines += self._explained() + self._by_teacher() + self._nested() + self._loss()
            if came_no_nearer(found):
                lines.append(
                    f"training did not bring the student nearer {to_teacher(found)}: see {HELP_PAGE}"
                )
        if "best_step" in found:
            lines.append(
                f"the student is that of step {found['best_step']}, whose held-out CKA was the highest"
            )
        if found.get("slides_per_step") is not None:
            lines.append(f"slides in a step: {found['slides_per_step']:.1f} on the mean")
        lines.append(
            f"{found['views_per_s']:.1f} views/s, waited for data {found['data_wait']:.1%} of the time, "
            f"peak memory {human_bytes(found['peak_rss_bytes'])}"
        )
        return [*lines, f"student: {self.student}", f"curves: {self.run / 'curves.png'}"]

    def _explained(self) -> list[str]:
        before, after = (self.figures.get(f"explained_{when}") for when in ("before", "after"))
        if after is None:
            return []
        change = "" if before is None else f"{before:.1%} -> "
        whose = of_features(self.figures)
        return [f"held out: of the variance of the {whose} the student explains {change}{after:.1%}"]

    def _by_teacher(self) -> list[str]:
        names = {"cka": "CKA", "cka_unbiased": "unbiased", "cosine": "cosine", "explained": "explained"}
        return [
            f"  {one_line(teacher, 100)}: {', '.join(f'{names[name]} {change}' for name, change in changes.items())}"
            for teacher, changes in by_teacher(self.figures, "->")
        ]

    def _nested(self) -> list[str]:
        of = [
            f"{length} numbers {figures['cka']:.3f}"
            for length, figures in self.figures.get("nested", {}).items()
            if "cka" in figures
        ]
        whose = f" {to_teacher(self.figures)}" if self.figures.get("teachers") else ""
        return [f"held out: CKA{whose} of the first {', '.join(of)}"] if of else []

    def _loss(self) -> list[str]:
        loss, constant = (self.figures.get(f"val_loss_{name}") for name in ("after", "constant"))
        if loss is None:
            return []
        beside = "" if constant is None else f" (the mean of the targets: {constant:.3f})"
        return [f"held out: loss {loss:.3f}{beside}"]
