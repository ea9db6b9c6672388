"""Which split the patients are in of whom the user does not say it.

A hash of the patient against the share decides, so that a patient's split depends on no other patient. Only where that
would leave a training without a held-out patient, the one with the smallest hash is held out; and only where nobody
would be left to train on, the one with the largest hash trains. What the store has recorded of a patient stays.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.tile.slides_csv import Given, patient_of
from stores.format import manifest
from stores.format.splits import TRAIN, VAL

Rows = Mapping[str, Mapping[str, Any]]
"""A slides table by slide id."""


def number_of(patient_id: str) -> int:
    """The number of a patient, uniform in 0 .. 2**64 - 1.

    >>> number_of("p2") < number_of("p1")
    True
    """
    digest = hashlib.blake2b(patient_id.encode(), digest_size=8, person=b"g2l-split").digest()
    return int.from_bytes(digest, "big")


def split_of(patient_id: str, val: float) -> str:
    """The split that the hash of a patient alone decides.

    >>> split_of("patient-1", 0.0), split_of("patient-1", 0.999999)
    ('train', 'val')
    """
    return VAL if number_of(patient_id) < val * 2**64 else TRAIN


def assign(patients: Iterable[str], others: Collection[str], val: float) -> dict[str, str]:
    """The splits of patients, of which at least one is held out and at least one trains, where that is possible.

    Parameters
    ----------
    patients
        Those of whom nobody says a split.
    others
        The split of each other patient.
    val : float
        Share of the held-out patients; 0 holds out nobody.

    >>> assign(["ann", "bea"], [], 0.1)
    {'ann': 'val', 'bea': 'train'}
    >>> assign(["ann", "bea"], ["val"], 0.1)
    {'ann': 'train', 'bea': 'train'}
    >>> assign(["ann"], [], 0.999), assign(["ann", "bea"], [], 0)
    ({'ann': 'train'}, {'ann': 'train', 'bea': 'train'})
    """
    order = sorted(set(patients), key=number_of)
    splits = {patient_id: split_of(patient_id, val) for patient_id in order}
    if order and TRAIN not in (*others, *splits.values()):
        splits[order[-1]] = TRAIN
    every = [*others, *splits.values()]
    if order and val > 0 and VAL not in every and every.count(TRAIN) > 1:
        splits[order[0]] = VAL
    return splits


class Splits:
    """The splits of the slides of one run.

    Whether a slide can be used is known only once it was tried. So slides are tried in `stages`: first of patients who
    train, until one of them can be used, then of all who are held out; where none can be, another takes their place.
    Nothing that is recorded changes by that, so a run that was killed continues with the same splits.

    Parameters
    ----------
    rows
        The store's slides table before the run.
    given
        What the user says.
    slide_ids
        The slides of the run.
    """

    def __init__(self, rows: Rows, given: Given, slide_ids: Collection[str], val: float) -> None:
        self._val = val
        self.patients: dict[str, str] = {}
        """By slide id."""
        said: dict[str, str] = {}
        self._of_slide: dict[str, str] = {}
        for slide_id in slide_ids:
            old, cells = rows.get(slide_id, {}), given.cells.get(slide_id, {})
            patient_id = cells.get("patient_id", old.get("patient_id") or patient_of(slide_id))
            self.patients[slide_id] = patient_id
            if "split" in cells:
                said[patient_id] = self._of_slide[slide_id] = cells["split"]
            elif old and old["patient_id"] == patient_id:
                self._of_slide[slide_id] = old["split"]
        recorded = {row["patient_id"]: row["split"] for row in rows.values()}
        self._fixed = recorded | said
        self._free = set(self.patients.values()) - self._fixed.keys()
        self._decided: dict[str, str] = {}
        self.decide(rows, list(slide_ids))

    def of(self, slide_id: str) -> str:
        """The split of a slide."""
        patient_id = self.patients[slide_id]
        free = patient_id in self._free
        return self._decided[patient_id] if free else self._of_slide.get(slide_id, self._fixed[patient_id])

    def enter(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the slides table with the split that its patient has by now."""
        return {**row, "split": self._decided.get(row["patient_id"], row["split"])}

    def stages(self, slide_ids: Sequence[str], rows: Rows) -> Iterator[list[str]]:
        """The slides in the order in which they are tried. `rows` has those before when the next ones are asked for."""
        left = list(slide_ids)
        while left:
            settled = self.decide(rows, left)
            stage = self._first(left, settled) or left
            left = [slide_id for slide_id in left if slide_id not in set(stage)]
            yield stage

    def _first(self, left: Sequence[str], settled: Mapping[str, str]) -> list[str]:
        """The slides on which the splits of others may depend; empty when they depend on none any more."""
        free = {self.patients[i] for i in left} & self._free - settled.keys()
        if not free or not self._val:
            return []
        if TRAIN in settled.values():
            return [] if VAL in settled.values() else [i for i in left if self.of(i) == VAL]
        said = [i for i in left if self.of(i) == TRAIN and self.patients[i] not in free]
        last = max((p for p in free if self._decided[p] == TRAIN), key=number_of, default="")
        return said or [i for i in left if self.patients[i] == last]

    def decide(self, rows: Rows, left: Sequence[str]) -> dict[str, str]:
        """Assign the patients that are free, and can have a usable slide; returns the splits of those who have one."""
        waiting = set(left)
        settled = {
            row["patient_id"]: row["split"]
            for slide_id, row in rows.items()
            if slide_id not in waiting and row["status"] == manifest.OK
        }
        fixed = {self.patients[i]: self.of(i) for i in left if self.patients[i] not in self._free}
        others = fixed | settled
        free = {self.patients[i] for i in left} & self._free - others.keys()
        self._decided |= assign(free, others.values(), self._val)
        return settled
