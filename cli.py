"""The command line: parse, call one function, print. Everything heavy is imported inside the commands."""

import io
import os
import signal
import sys
import types
from typing import NoReturn

import click

from pipeline.commands import evaluate, stages, store, tools
from pipeline.commands.click_options import Commands


def _show_version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from pipeline.runtime.version import g2l_version

        click.echo(f"g2l, version {g2l_version()}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version.",
)
def g2l() -> None:
    """Distil a giant pathology encoder into a small one, from a store of teacher features.

    tile -> extract-teacher -> distill. Every command can be stopped at any moment: the same command continues.
    """


for command in (
    stages.tile_command,
    stages.plan_command,
    stages.extract_command,
    stages.distill_command,
    stages.prototypes_command,
    stages.embed_command,
    stages.export_command,
    stages.push_student_command,
    store.store,
    evaluate.evaluate,
    tools.report_command,
    tools.models_command,
    tools.doctor_command,
    tools.demo_command,
):
    g2l.add_command(command)


def main() -> None:
    """Entry point of ``g2l`` and ``python cli.py``."""

    def terminate(number: int, frame: types.FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    # Waiting OpenMP threads sleep instead of spinning. Beside one busy process on two cores, extract-teacher made 88
    # views/s instead of 55; on an idle machine the speed was the same. It must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, terminate)  # a cluster's way of Ctrl-C
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a name in letters that this terminal does not have
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        g2l(prog_name="g2l")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from here on nothing needs to be said about it


if __name__ == "__main__":
    main()
