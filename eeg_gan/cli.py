"""The command line: `eeg-gan VERB CONFIG.yaml [key=value ...]`.

A literal table names the verbs; a verb's module is imported only when the verb is used, so that help costs nothing.
Exit codes: 0 done, 2 the user's mistake, 1 ours, 75 saved, start me again.
"""

import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import typer
from rich.console import Console
from rich.table import Table

from eeg_gan import __version__
from eeg_gan.config import UserError, from_dict, keys, load, to_yaml

DONE, OURS, USERS, AGAIN = 0, 1, 2, 75

# verb -> what it does; the module is eeg_gan.stages.VERB (dashes as underscores)
VERBS = {
    "prepare": "filter, cut and split a raw dataset without leaks; write shards",
    "audit": "look for leaks and confounds in prepared shards",
    "encode": "stage 1: train an EEG encoder by triplet loss (or cross-entropy, for comparison)",
    "align": "stage 2: fine-tune the encoder by the CLIP loss against an image tower",
    "embed": "one feature vector per trial, from EEG or through image2eeg",
    "gan": "stage 3: train StyleGAN2-ADA conditioned on the EEG feature",
    "image2eeg": "stage 4: train the regressor from images into the EEG space",
    "generate": "images of trials, pictures or classes; interpolation, style mixing, seed grids",
    "project": "the style and noise that give back an image: its place in the generator's space",
    "export": "the averaged generator as TorchScript and ONNX, checked against this program",
    "evaluate": "every metric, with intervals and controls",
    "report": "one self-contained HTML page with pictures",
    "pipeline": "all of the above in order, skipping what is done",
    "reproduce": "the ledger of a paper: each published figure beside ours, as published and leak-free",
    "demo": "the whole pipeline on simulated EEG of rendered images, on a CPU, in minutes",
    "doctor": "what is installed, built and reachable, and the cure for what is not",
    "init-dataset": "write the card and the csv of your own data",
}
WITHOUT_FILE = {"demo", "doctor", "init-dataset", "reproduce"}  # verbs whose config file is optional
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # a disk, a file at its limit, a quota
# What the system says of a path or a disk, never of our code: shown as one line, exit code 2.
SYSTEM_ERRORS = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError)


class Interrupted(Exception):
    """Ctrl-C, under a name that the command-line library does not turn into an exit code of its own."""


console = Console(stderr=True)
log = logging.getLogger("eeg_gan")


def entry() -> None:
    """The console script."""
    settle_threads()
    leave(main(sys.argv[1:]))


def settle_threads() -> None:
    """Before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # OpenMP threads that spin at every small barrier cost nothing on an idle machine, but where another program
        # has a core they wait for a thread that is not running: 54 against 176 images per s in the GAN on two cores.
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def leave(code: int) -> None:
    """Ends the process; several ranks part together where all is well, and at once where one of them is lost.

    To take apart a process group that has lost a rank can abort or wait for ever.
    """
    distributed = sys.modules.get("eeg_gan.distributed")  # not imported for help
    if distributed is None or distributed.world_size() == 1 or (code in (DONE, AGAIN) and distributed.part()):
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    try:
        set_up_logging()
        return _application()(list(argv), standalone_mode=False, prog_name="eeg-gan") or DONE
    except UserError as error:
        return _say(str(error), USERS)
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, Interrupted):
        return _say("interrupted; the same command goes on from the last checkpoint", AGAIN)
    except OSError as error:
        return _say(_about_system(error), USERS) if _is_users(error) else _ours()
    except Exception as error:  # every other exception is our mistake: the traceback is the report
        if hasattr(error, "format_message"):  # click's usage errors
            return _say(error.format_message(), USERS)
        return _leaving(error) if hasattr(error, "exit_code") else _ours()


def stage(verb: str) -> ModuleType:
    """The module that carries out a verb: it has `Config` and `run(config)`."""
    return importlib.import_module(f"eeg_gan.stages.{verb.replace('-', '_')}")


def _application() -> typer.Typer:
    application = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="rich",
        help="Visual representations from EEG, and images made from them.",
    )
    application.callback()(_version)
    for verb, meaning in VERBS.items():
        command = _reproduce if verb == "reproduce" else _command(verb)
        application.command(verb, help=meaning, context_settings={"help_option_names": []})(command)
    application.command("config", help="print the resolved config of a verb")(_show_config)
    return application


def _version(version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True)):
    if version:
        typer.echo(f"eeg-gan {__version__}")
        raise typer.Exit()


def _command(verb: str):
    def command(
        config: str = typer.Argument(None, metavar="CONFIG.yaml"),
        overrides: list[str] = typer.Argument(None, metavar="[key=value]..."),  # noqa: B008
        show_help: bool = typer.Option(False, "--help", "-h", help="Every key with type, default and meaning."),
        verify: bool = typer.Option(False, "--verify", help="Check what the verb has written, byte for byte."),
        cluster: str = typer.Option(None, "--cluster", help="doctor: check the cluster of configs/cluster/NAME.yaml."),
    ) -> int | None:
        if show_help:
            return _show_keys(verb)
        path, words = config, list(overrides or [])
        if path is not None and "=" in path and not os.path.exists(path):
            path, words = None, [path, *words]
        if verb == "init-dataset" and path is not None and not path.endswith((".yaml", ".yml")):
            path, words = None, [f"path={path}", *words]
        if cluster is not None:
            return _examine_cluster(verb, cluster, words)
        if path is None and verb not in WITHOUT_FILE:
            raise UserError(
                f"eeg-gan {verb} needs a config file: eeg-gan {verb} CONFIG.yaml [key=value ...]; "
                f"`eeg-gan {verb} --help` lists the keys, configs/{verb}/ has examples"
            )
        return _carry_out(verb, path, words, verify)

    return command


def _carry_out(verb: str, path: str | None, words: list[str], verify: bool = False) -> None:
    try:
        module = stage(verb)
        if verify and not hasattr(module, "verify"):
            raise UserError(f"eeg-gan {verb} has no --verify; leave it out (prepare has one)")
        (module.verify if verify else module.run)(load(module.Config, path, words))
    except KeyboardInterrupt:
        raise Interrupted from None


def _reproduce(
    paper: str = typer.Argument(None, metavar="[PAPER]"),
    overrides: list[str] = typer.Argument(None, metavar="[key=value]..."),  # noqa: B008
    show_help: bool = typer.Option(False, "--help", "-h", help="Every key with type, default and meaning."),
    table: str = typer.Option(None, "--table", help="Only this one: 1 is Table 1, 'figure 5' is Figure 5."),
) -> None:
    """A paper is a word, as its ledger is a folder of files."""
    if show_help:
        return _show_keys("reproduce")
    words, path = [*(overrides or []), *([f"table={table}"] if table else [])], None
    if paper is not None and paper.endswith((".yaml", ".yml")) and "=" not in paper:
        path = paper
    elif paper is not None:
        words = [paper if "=" in paper else f"paper={paper}", *words]
    _carry_out("reproduce", path, words)


def _examine_cluster(verb: str, name: str, words: list[str]) -> int:
    if verb != "doctor":
        raise UserError(f"eeg-gan {verb} has no --cluster; launch/slurm.py --cluster {name} -- {verb} ... submits it")
    return importlib.import_module("eeg_gan.slurm.doctor").run(name, words)


def _show_config(
    verb: str = typer.Argument(..., help="the verb whose config is meant"),
    config: str = typer.Argument(None, metavar="CONFIG.yaml"),
    overrides: list[str] = typer.Argument(None, metavar="[key=value]..."),  # noqa: B008
) -> None:
    if verb not in VERBS:
        raise UserError(f"there is no verb {verb!r}; the verbs are {', '.join(VERBS)}")
    path, words = config, list(overrides or [])
    if path is not None and "=" in path and not os.path.exists(path):
        path, words = None, [path, *words]
    cls = stage(verb).Config
    typer.echo(to_yaml(load(cls, path, words) if path or words else from_dict(cls, {}, "the command line")), nl=False)


def _show_keys(verb: str) -> None:
    table = Table("key", "type", "default", "meaning", title=f"eeg-gan {verb}: {VERBS[verb]}", title_justify="left")
    for key in keys(stage(verb).Config):
        table.add_row(key.name, key.type, key.default, key.meaning)
    file = "[PAPER] [--table N]" if verb == "reproduce" else "[CONFIG.yaml]" if verb in WITHOUT_FILE else "CONFIG.yaml"
    out = Console(width=None if sys.stdout.isatty() else 160)
    out.print(f"eeg-gan {verb} {file} \\[key=value ...]", highlight=False)
    out.print(table)


def set_up_logging() -> None:
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
    main_process = os.environ.get("RANK", "0") == "0"  # ranks other than 0 speak only when something is wrong
    log.setLevel(logging.INFO if main_process else logging.WARNING)


def _leaving(error: Exception) -> int:
    """Of a run that stopped because it was asked to, or because another rank is lost."""
    if not getattr(error, "said", False):
        _say(str(error), error.exit_code)
    if hasattr(error, "hand_over"):
        error.hand_over()  # under submitit rank 0 asks for a requeue here, and does not come back
    return error.exit_code


def _say(message: str, code: int) -> int:
    console.print(
        f"eeg-gan: {message}",
        style="bold red" if code == USERS else None,
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return code


def _ours() -> int:
    log.exception("eeg-gan: this is a mistake of the program, not yours; please report it with the lines below")
    return OURS


def _is_users(error: OSError) -> bool:
    return error.errno in (*FULL, errno.EROFS) or isinstance(error, SYSTEM_ERRORS)


def _about_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    cure = "; make room where run_dir lies, and give the same command again" if error.errno in FULL else ""
    return f"{where}{error.strerror or error}{cure}; nothing that was complete has been lost"
