"""Batch scripts under real bash: whatever a folder, queue or value is called, it is one word and never a command."""

import json
import os
import pickle
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import debug

from eeg_gan.config import UserError, from_dict
from eeg_gan.slurm import main as front
from eeg_gan.slurm import script
from eeg_gan.slurm.cluster import Cluster
from eeg_gan.slurm.plan import Stage, Task

HOSTILE = [
    "a b",
    "it's",
    'say "hi"',
    "$(touch pwned)",
    "`touch pwned`",
    "new\nline\ntouch pwned",
    "; touch pwned #",
    "ü*?",
    "-n",
    "a\\b",
    "50%",
]
RECORD = """#!/usr/bin/env python3
import json, os, sys
json.dump({"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}, open(os.environ["RECORD"], "w"))
sys.exit(int(os.environ.get("CODE", "0")))
"""


def program(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def ran(tmp_path):
    """Runs a script with a recorder in srun's place, as SLURM would: from the job folder."""
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools / "srun", RECORD)
    program(tools / "scontrol", RECORD.replace('["RECORD"]', '["RECORD"] + ".scontrol"'))

    def run(text, folder, code=0):
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder), "CODE": str(code)}
        environment |= {"RECORD": str(tmp_path / "record.json"), "SLURM_JOB_ID": "7", "RANK": "5"}
        found = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert found.returncode == code and not found.stderr, found.stderr
        assert not list(tmp_path.rglob("pwned"))
        return json.loads((tmp_path / "record.json").read_text())

    return run


def stage(tasks=1, verb="gan", name="gan", **facts):
    own = tuple(Task(f"k={i}", (f"k={i}",), f"r/k={i}", {"batch": 16}) for i in range(tasks))
    return Stage(name, verb, from_dict(Cluster, facts, "test"), own)


def header(text):
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_single_words(tmp_path, ran, name):
    folder = tmp_path / name / "slurm" / "0001"
    folder.mkdir(parents=True)
    code = tmp_path / name / "code-1"
    text = script.text(
        stage(name=name, env={"NAME": name}, scratch=name, python=f"/opt/{name.split(chr(10))[0]}"), folder, code
    )
    found = ran(text, folder)
    assert found["argv"][-4:] == [f"/opt/{name.split(chr(10))[0]}", "-u", str(code / "run.py"), str(folder)]
    assert found["cwd"] == str(folder) and found["env"]["NAME"] == found["env"]["EEG_GAN_SCRATCH"] == name
    assert "RANK" not in found["env"], "of the shell that submitted"
    assert text.splitlines()[1 : 1 + len(header(text))] == header(text), "sbatch stops at the first other line"


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\n" not in name])
def test_hostile_queues_stay_in_their_header_line(ran, tmp_path, name):
    text = script.text(stage(partition=name, account=name, qos=name, sbatch={"comment": name}), tmp_path, tmp_path)
    ran(text, tmp_path)
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {' '.join(line.removeprefix('#SBATCH ') for line in header(text))}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout.split("\0")
    for option in ("partition", "account", "qos", "comment"):
        assert f"--{option}={name}" in words


@pytest.mark.parametrize("fact", ["partition", "account", "qos", "gpu_type", "python"])
@pytest.mark.parametrize("value", ["a\ntouch pwned", "a\rb", "", "a\0"])
def test_a_header_line_cannot_be_broken(fact, value):
    with pytest.raises(UserError, match=fact):
        stage(**{fact: value})


@pytest.mark.parametrize(
    "facts",
    [{"sbatch": {"comment\nx": "a"}}, {"sbatch": {"comment": "a\nb"}}, {"env": {"A B": "c"}}, {"setup": ["a\nb"]}],
)
def test_other_names_that_would_break_a_script_are_refused(facts):
    with pytest.raises(UserError):
        stage(**facts)


def test_the_header_asks_for_what_the_cluster_file_says():
    own = stage(
        5, nodes=2, gpus_per_node=4, gpu_type="a100", mem_gb=1.5, time_min=90, parallelism=3,
        sbatch={"exclusive": True, "nice": 100, "requeue": False},
    )  # fmt: skip
    lines = header(script.text(own, Path("/f"), Path("/c")))
    for line in (
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=a100:4",
        "mem=1536M",
        "time=90",
        "array='0-4%3'",
        "exclusive",
    ):
        assert f"#SBATCH --{line}" in lines or f"#SBATCH --{line.replace(chr(39), '')}" in lines, line
    for line in ("nice=100", "signal=USR2@120", "open-mode=append", "output='%A_%a_batch.log'"):
        assert f"#SBATCH --{line}" in lines or f"#SBATCH --{line.replace(chr(39), '')}" in lines, line
    assert "#SBATCH --requeue" not in lines


@pytest.mark.parametrize("path", ["/runs/%j", "/runs/50%tasks"])
def test_folders_in_which_submitit_would_put_numbers_are_refused(path):
    with pytest.raises(UserError, match="another run_dir"):
        script.check_path(path)


@pytest.mark.parametrize("name", ["50%", "a\\b"])
def test_a_script_writes_its_own_log_where_slurm_cannot(ran, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    text = script.text(stage(setup=["echo set up"]), folder, tmp_path)
    assert "#SBATCH --output=/dev/null" in header(text)
    for _ in range(2):  # a requeued job appends
        ran(text, folder)
    assert (folder / "7_batch.log").read_text() == "set up\n" * 2
    assert '/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_batch.log" 2>&1' in script.text(stage(2), folder, tmp_path)
    assert "/dev/null" not in script.text(stage(), tmp_path, tmp_path)


def test_apptainer_and_pyxis(ran, tmp_path):
    container = {"image": "my image.sif", "mounts": ["/data"], "args": ["--writable-tmpfs"]}
    own = stage(gpus_per_node=1, container={"kind": "apptainer", **container})
    words = ran(script.text(own, tmp_path, Path("/c"), ("/home/x y",)), tmp_path)["argv"]
    start = words.index("apptainer")
    assert words[start:] == [
        "apptainer", "exec", "--nv", "--bind", "/home/x y", "--bind", "/data", "--pwd", str(tmp_path),
        "--writable-tmpfs", "my image.sif", "python3", "-u", "/c/run.py", str(tmp_path),
    ]  # fmt: skip
    own = stage(container={"kind": "pyxis", **container})
    words = ran(script.text(own, tmp_path, Path("/c"), ("/home/x y",)), tmp_path)["argv"]
    assert {"--container-image=my image.sif", "--container-mounts=/home/x y:/home/x y,/data:/data"} <= set(words)
    assert words[-4:] == ["python3", "-u", "/c/run.py", str(tmp_path)]
    with pytest.raises(UserError, match="cannot be mounted"):
        script.check_mounts(own.facts, ("/a:b",))


def test_a_container_requeues_by_a_mark(ran, tmp_path):
    text = script.text(stage(container={"kind": "apptainer", "image": "i"}), tmp_path, tmp_path)
    ran(text, tmp_path, code=75)
    assert not (tmp_path / "record.json.scontrol").exists()
    inside = Path(script.__file__).parent / "inside" / "scontrol"  # what submitit calls in there
    environment = {"SUBMITIT_FOLDER": str(tmp_path), "SLURM_JOB_ID": "7"}
    subprocess.run([inside, "requeue", "7_1"], env=environment, check=True)
    assert (tmp_path / "requeue-7").exists()
    text = text.replace("scontrol requeue", "CODE=0 scontrol requeue")
    ran(text, tmp_path, code=75)
    assert json.loads((tmp_path / "record.json.scontrol").read_text())["argv"] == ["requeue", "7"]
    assert not (tmp_path / "requeue-7").exists()


SBATCH = """#!/usr/bin/env python3
import json, os, sys
log = open(os.environ["RECORD"], "a")
count = sum(1 for _ in open(os.environ["RECORD"]))
log.write(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd()}) + "\\n")
print(f"{40 + count};cluster")
"""


@pytest.mark.parametrize("name", ["runs", "".join(HOSTILE)])
def test_a_submission_writes_down_what_its_jobs_will_run(tmp_path, monkeypatch, name):
    program(tmp_path / "sbatch", SBATCH)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "sbatch.jsonl"))
    place = tmp_path / name
    place.mkdir()
    monkeypatch.chdir(place)
    words = ["parallelism=2", "--cluster", "example", "gpus_per_node=0"]
    assert front.main([*words, "--", "encode", debug("encode"), "seed=1,2", "run_dir=r"]) == 0
    home = place / "r" / "slurm"
    assert home.stat().st_mode & 0o777 == (home / "0001").stat().st_mode & 0o777 == 0o700
    called = [json.loads(line) for line in open(tmp_path / "sbatch.jsonl")]
    assert called == [{"argv": ["--parsable", "./encode.sh"], "cwd": str(home / "0001")}]
    for number in range(2):
        raw = (home / "0001" / f"40_{number}_submitted.pkl").read_bytes()
        job = pickle.loads(raw)
        config = home / "0001" / f"encode-{number:03d}.yaml"
        assert vars(job.function) == {"argv": ["encode", str(config)], "folder": str(place)}
        assert b"eeg_gan.slurm.job" in raw and len(raw) < 2000, "the words alone, no code"
        assert job._checkpoint_function().function.argv == job.function.argv
        assert yaml.safe_load(config.read_text())["seed"] == number + 1
    (code,) = home.glob("code-*")
    assert (code / "eeg_gan" / "cli.py").exists() and (code / "run.py").exists()
    assert "torch" in json.loads((home / "0001" / "environment.json").read_text())["packages"]
    if name == "runs":  # again: another submission, the same code
        program(tmp_path / "squeue", "#!/bin/sh\necho '40_1|RUNNING|None'\n")
        program(tmp_path / "sacct", "#!/bin/sh\nexit 1\n")
        assert front.main([*words, "--", "encode", debug("encode"), "seed=1,2", "run_dir=r"]) == 2
        program(tmp_path / "squeue", "#!/bin/sh\nexit 1\n")
        assert front.main([*words, "--", "encode", debug("encode"), "seed=1,2", "run_dir=r"]) == 0
        assert len(list(home.glob("code-*"))) == 1 and (home / "0002").is_dir()


def test_half_a_chain_is_taken_back(tmp_path, monkeypatch, capsys):
    program(tmp_path / "sbatch", SBATCH + "if count == 2: sys.exit('sbatch: error: invalid partition')\n")
    program(tmp_path / "scancel", '#!/bin/sh\necho "$@" > "$RECORD.scancel"\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "sbatch.jsonl"))
    monkeypatch.chdir(tmp_path)
    words = ["--cluster", "example", "gpus_per_node=0", "verbs.gan.nodes=1"]
    assert front.main([*words, "--", "pipeline", debug("pipeline"), "run_dir=p"]) == 2
    assert (tmp_path / "sbatch.jsonl.scancel").read_text().split() == ["40", "41"]
    assert "invalid partition" in " ".join(capsys.readouterr().err.split())
    called = [json.loads(line)["argv"] for line in open(tmp_path / "sbatch.jsonl")]
    assert called[1] == ["--parsable", "--dependency=afterok:40", "--kill-on-invalid-dep=yes", "./audit.sh"]
