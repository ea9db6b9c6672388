"""Every command that writes, with what has to be there before it."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.tools.settings import VIT

_STUDENT = "timm:vit_tiny_patch16_224?embed_dim=24&depth=1&num_heads=2&patch_size=32"
_TEACHER: tuple[str, ...] = (
    "--teacher",
    "tests.tools.tiny:teacher",
    "--random-weights",
    "0",
    "--threads",
    "1",
)
_TILING = ("--slides-csv", "{kit}/slides/slides.csv", "--mpp", "0.5")
_EXTRACT = ("extract-teacher", "{kit}/slides", "--store", "store", *_TEACHER, *_TILING)
_TILES = ("{kit}/tiles/tiles.csv", "--mpp", "0.5", "--patch", "224", "--store", "store")
_EMBED: tuple[str, ...] = (
    "--encoder",
    "tests.tools.tiny:student",
    "--random-weights",
    "0",
    "--threads",
    "1",
    "--out",
    "out",
)
_DECLARED: tuple[str, ...] = ("--encoder", "tiny", "--pooling", "forward", "--image-px", "224")
_DECLARED += ("--mean", ".7,.6,.7", "--std", ".2,.2,.2", "--threads", "1")
_DISTILL: tuple[str, ...] = (
    "distill",
    "--store",
    "store",
    "--out",
    "run",
    "--student",
    _STUDENT,
    "--random-weights",
    "1",
    "--steps",
    "6",
)
_DISTILL += (
    "--batch-size",
    "8",
    "--val-every",
    "3",
    "--checkpoint-every",
    "2",
    "--threads",
    "1",
    "--window",
    "64",
)
_DISTILL += ("--ema", "0.9")
_TORCHRUN: tuple[str, ...] = (
    "--nproc-per-node",
    "2",
    "--master-port",
    "{port}",
    "--max-restarts",
    "0",
    "g2l.py",
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command and what it starts from."""

    argv: tuple[str, ...]
    """``{kit}`` stands for the folder of prepared things, ``{url}`` for a place on the S3 server."""
    start: Mapping[str, str] = field(default_factory=dict)
    """Prepared things, by the name that they have in the folder of a trial."""
    processes: bool = False
    """It has several: one of them, or the first alone, may be killed too."""
    light: bool = False
    """It needs no torch."""
    network: bool = False
    """What it sends counts as a change too."""
    url: bool = False
    """Its result is behind the URL."""
    program: str = "g2l"
    cluster: bool = False
    """It runs on a scheduler with two workers that outlive it."""


def _store(*argv: str, **settings: object) -> Command:
    start = settings.pop("start", {"store": "store"})
    return Command(("store", *argv), start, light=True, **settings)  # type: ignore[arg-type]


def _several(store: str) -> tuple[str, ...]:
    """A training on a store and on another one of its family."""
    return ("distill", "--store", store, "--store", "sibling:0.5", *_DISTILL[3:], "--teacher-drop", "0.3")


COMMANDS: dict[str, Command] = {
    "tile": Command(("tile", "{kit}/slides", "--store", "store", *_TILING)),
    "tile more": Command(("tile", "{kit}/slides", "--store", "store", *_TILING), {"store": "tiled one"}),
    "extract": Command((*_EXTRACT, "--seeds", "2", "--pixels")),
    "extract tokens": Command(
        (*_EXTRACT, "--seeds", "2", "--tokens", "5", "--teacher", VIT), {"store": "tiled"}
    ),
    "extract seeds": Command((*_EXTRACT, "--seeds", "3", "--pixels"), {"store": "store"}),
    "extract --workers 2": Command(
        (*_EXTRACT, "--seeds", "2", "--pixels", "--workers", "2"), {"store": "tiled"}, processes=True
    ),
    "extract --scheduler": Command(
        (*_EXTRACT, "--seeds", "2", "--pixels", "--scheduler", "{scheduler}"),
        {"store": "tiled"},
        processes=True,
        cluster=True,
    ),
    "tile tiles": Command(("tile", *_TILES)),
    "extract tiles": Command(("extract-teacher", *_TILES, *_TEACHER, "--seeds", "2", "--pixels")),
    "distill": Command(_DISTILL, {"store": "store"}),
    "distill --resume": Command((*_DISTILL, "--resume"), {"store": "store", "run": "begun"}),
    "distill torchrun": Command(
        (*_TORCHRUN, *_DISTILL),
        {"store": "store", "g2l.py": "g2l.py"},
        processes=True,
        program="torchrun",
    ),
    "distill several": Command(_several("store"), {"store": "store", "sibling": "sibling"}),
    "distill several torchrun s3": Command(
        (*_TORCHRUN, *_several("{pushed}"), "--join", "any"),
        {"sibling": "sibling", "g2l.py": "g2l.py"},
        processes=True,
        program="torchrun",
    ),
    "prototypes": Command(
        ("prototypes", "--store", "store", "--out", "out", "--k", "4", "--window", "16", "--threads", "1"),
        {"store": "store"},
    ),
    "embed parquet": Command(("embed", "{kit}/slides", *_EMBED, *_TILING)),
    "embed trident-h5": Command(("embed", "{kit}/slides", *_EMBED, *_TILING, "--format", "trident-h5")),
    "embed eva": Command(("embed", "{kit}/slides", *_EMBED, *_TILING, "--format", "eva")),
    "embed plism": Command(
        ("embed", "{kit}/tiles/tiles.csv", *_EMBED, "--format", "plism", "--column", "group=slide")
    ),
    "embed tiles": Command(("embed", "{kit}/tiles/tiles.csv", *_EMBED)),
    "embed tiles eva": Command(("embed", "{kit}/tiles/tiles.csv", *_EMBED, "--format", "eva")),
    "embed --workers 2": Command(
        ("embed", "{kit}/slides", *_EMBED, *_TILING, "--workers", "2"), processes=True
    ),
    "evaluate knn": Command(
        (
            "evaluate",
            "knn",
            "embedded",
            "--label",
            "site",
            "--k",
            "3",
            "--by",
            "leave-out",
            "--out",
            "knn.json",
        ),
        {"embedded": "embedded"},
    ),
    "evaluate all": Command(("evaluate", "all", "--config", "{kit}/bench.yaml", "--out", "out")),
    "report run": Command(("report", "run"), {"run": "finished"}),
    "report store": Command(("report", "store", "--max-patches", "4"), {"store": "store"}),
    "export hf": Command(
        ("export", "run", "--format", "hf", "--store", "store", "--views", "2", "--out", "out"),
        {"run": "finished", "store": "store"},
    ),
    "seal": _store("seal", "store"),
    "merge": _store("merge", "one", "two", "--out", "out", start={"one": "part one", "two": "part two"}),
    "merge reconcile": _store(
        "merge", "one", "two", "--out", "out", start={"one": "part one", "two": "part both"}
    ),
    "subset": _store("subset", "store", "--out", "out", "--seeds", "1", "--no-pixels"),
    "export lossless": _store("export", "store", "--out", "out", "--compact", "lossless"),
    "export tokens": _store(
        "export", "store", "--out", "out", "--compact", "lossless", start={"store": "tokens"}
    ),
    "export int8": _store("export", "store", "--out", "out", "--compact", "int8"),
    "export pseudonyms": _store(
        "export", "store", "--out", "out", "--pseudonymise", "{kit}/key", "--mapping", "mapping.csv"
    ),
    "import": Command(
        (
            "store",
            "import",
            "{kit}/trident",
            "--slides",
            "{kit}/slides",
            "--out",
            "store",
            *_DECLARED,
            *_TILING[:2],
        )
    ),
    "reindex": _store("reindex", "store", "--prune", start={"store": "legacy"}),
    "card": _store("card", "store", "--date", "2026-01-01"),
    "repair": Command(
        ("store", "verify", "store", "--repair", "--slides", "{kit}/slides", *_TEACHER), {"store": "damaged"}
    ),
    "push": _store("push", "store", "file://{folder}/remote"),
    "pull": _store("pull", "file://{kit}/store", "out", start={}),
    "push s3": Command(("store", "push", "store", "{url}"), {"store": "part one"}, network=True, url=True),
    "pull s3": Command(("store", "pull", "{pushed}", "out"), {}),
}
"""By name. What is left out writes nothing (`plan`, `info`, `verify`, `models`, `doctor`), calls others (`demo`), or
leaves nothing but one commit on a hub (`push-student`, which begins as `export`)."""


BENCH = """
encoders:
  student: {encoder: "tests.tools.tiny:student", random_weights: 0}
  teacher: {encoder: "tests.tools.tiny:teacher", random_weights: 0}
data:
  cohort: {input: %s/slides, slides_csv: %s/slides/slides.csv, mpp: 0.5}
tasks:
  - {protocol: knn, data: cohort, label: site, k: [3], by: leave-out, replicates: 10}
  - {protocol: cka, data: cohort, to: teacher, name: to the teacher}
"""

Runner = Callable[..., None]


class Kit:
    """Prepared things in a folder, each made when it is first asked for, by undisturbed commands."""

    def __init__(self, folder: Path, run: Runner) -> None:
        self.folder, self._run = folder, run

    def get(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            getattr(self, f"_{name.replace(' ', '_').replace('.', '_')}")(path)
        return path

    def basis(self) -> None:
        """What arguments name with ``{kit}``."""
        for name in ("slides", "tiles", "trident", "key", "bench.yaml"):
            self.get(name)

    def _slides(self, path: Path) -> None:
        from pipeline.demo.synthetic_slides import write_slide

        path.mkdir()
        rows = ["slide_id,patient_id,split,site,label"]
        for seed, (name, split) in enumerate(zip("abcd", ("train", "train", "val", "train"), strict=True)):
            write_slide(path / f"{name}.tiff", seed=seed, width_px=1120, height_px=1120)
            rows.append(f"{name},p{seed},{split},{'xy'[seed % 2]},{seed % 2}")
        (path / "slides.csv").write_text("\n".join(rows) + "\n")

    def _tiles(self, path: Path) -> None:
        import numpy as np
        import PIL.Image

        path.mkdir()
        rows, random = ["path,label,slide"], np.random.default_rng(0)
        for i in range(6):
            name = f"tile_1_{i}_0.png"
            PIL.Image.fromarray(random.integers(0, 256, (224, 224, 3), np.uint8)).save(path / name)
            rows.append(f"{name},{i % 2},GMH_S{i % 2}0_x.tif")
        (path / "tiles.csv").write_text("\n".join(rows) + "\n")

    def _trident(self, path: Path) -> None:
        import numpy as np

        from tests.tools.trident import grid, write_trident

        path.mkdir()
        corners, random = grid(1120, 1120, 512), np.random.default_rng(0)
        for name in "abcd":
            values = random.random((len(corners), 24), np.float32)
            write_trident(path / f"{name}.h5", corners, values)

    def _key(self, path: Path) -> None:
        path.write_bytes(b"0123456789abcdef0123456789abcdef")

    def _bench_yaml(self, path: Path) -> None:
        path.write_text(BENCH % (self.folder, self.folder))

    def _g2l_py(self, path: Path) -> None:
        path.write_text("import cli\n\nif __name__ == '__main__':\n    cli.main()\n")

    def _made(self, path: Path, name: str, result: str) -> None:
        self._run(COMMANDS[name], path, result)

    def _tiled(self, path: Path) -> None:
        self._made(path, "tile", "store")

    def _tiled_one(self, path: Path) -> None:
        argv = ("tile", "{kit}/slides/a.tiff", "--store", "store", *_TILING)
        self._run(Command(argv), path, "store")

    def _store(self, path: Path) -> None:
        self._made(path, "extract", "store")

    def _sibling(self, path: Path) -> None:
        """The views of the store, seen by another teacher."""
        argv: tuple[str, ...] = (
            "extract-teacher",
            "{kit}/slides",
            "--store",
            "out",
            "--like",
            "store",
            "--pixels",
            "--threads",
            "1",
        )
        argv += ("--teacher", "tests.tools.tiny:student", "--random-weights", "2")
        self._run(Command(argv, {"store": "store"}), path, "out")

    def _tokens(self, path: Path) -> None:
        self._made(path, "extract tokens", "store")

    def _finished(self, path: Path) -> None:
        self._made(path, "distill", "run")

    def _begun(self, path: Path) -> None:
        """A run that was killed after its second checkpoint."""
        self._finished(path)
        for name in ("student", "student-ema"):
            shutil.rmtree(path / name)
        for name in (
            "summary.json",
            "summary.txt",
            "projector.safetensors",
            "curves.png",
            "checkpoints/step-00000006.pt",
        ):
            (path / name).unlink()

    def _embedded(self, path: Path) -> None:
        self._made(path, "embed parquet", "out")

    def _part(self, path: Path, *slides: str) -> None:
        chosen = [word for slide in slides for word in ("--slides", slide)]
        argv = ("store", "subset", "store", "--out", "out", *chosen)
        self._run(Command(argv, {"store": "store"}, light=True), path, "out")

    def _part_one(self, path: Path) -> None:
        self._part(path, "a", "b")

    def _part_two(self, path: Path) -> None:
        self._part(path, "c", "d")

    def _part_both(self, path: Path) -> None:
        self._part(path, "b", "c")

    def _damaged(self, path: Path) -> None:
        """A store in which everything is broken that can be made again."""
        shutil.copytree(self.get("store"), path)
        features = path / "features.zarr"
        (features / "zarr.json").unlink()
        (features / "a" / "features" / "zarr.json").unlink()
        (features / "a" / "coords" / "c" / "0" / "0").write_bytes(b"?")
        (features / "b" / "features" / "c" / "1" / "0" / "0").unlink()
        (features / "b" / "stats" / "c" / "0" / "0" / "0" / "0").unlink()
        (path / "pixels.zarr" / "c" / "c" / "0" / "0" / "0" / "0").write_bytes(b"?")
        next((path / "manifest" / "views" / "d").glob("*.parquet")).unlink()
        (path / "manifest" / "patches" / "b.parquet").write_bytes(b"?")

    def _legacy(self, path: Path) -> None:
        """A store with commit records seed by seed, a slide without statistics, and chunks that nothing lists."""
        from tests.tools.made_stores import MadeSlide, make_store

        make_store(path, [MadeSlide(name, seeds_apart=1) for name in ("p", "q")])
        shutil.rmtree(path / "features.zarr" / "p" / "stats")
        for record in (path / "manifest" / "views" / "q").glob("*-s0001-*.parquet"):
            record.unlink()
