"""What would be submitted: facts of a cluster, arithmetic, chains, refusals; nothing is written, SLURM is not asked."""

import json
import os

import pytest
import yaml
from conftest import ROOT, debug

from eeg_gan import cli
from eeg_gan.config import UserError, from_dict, load, to_dict
from eeg_gan.slurm import main as front
from eeg_gan.slurm.cluster import Cluster, Facts, find
from eeg_gan.slurm.plan import arithmetic, make


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch here


def write(path, **facts):
    path.write_text(yaml.safe_dump(facts))
    return str(path)


def dry_run(capsys, *words):
    """Exit code, what was printed, and what was said of errors."""
    code = front.main([*words[: words.index("--")], "--dry-run", *words[words.index("--") :]])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_grid_is_one_array_and_a_dry_run_writes_nothing(tmp_path, capsys):
    words = ["--cluster", "example", "verbs.gan.nodes=1", "gpus_per_node=2", "parallelism=3"]
    code, out, _ = dry_run(capsys, *words, "--", "gan", debug("gan"), "seed=1,2", "g_optim.lr=1e-3,2e-3", "run_dir=r")
    assert code == 0 and os.listdir(tmp_path) == []
    assert "#SBATCH --array=0-3%3\n" in out and "#SBATCH --gpus-per-node=2\n" in out
    assert "4 tasks, 3 at once: 3 x 2 = 6 GPUs at most" in out and "global batch 16 = 2 processes x 8" in out
    assert "one start of all tasks is 192 GPU-hours" in out  # 4 tasks x 2 GPUs x 24 h
    assert "task 3: seed=2 g_optim.lr=2e-3  ->  r/seed=2,g_optim.lr=2e-3" in out
    config = yaml.safe_load(out.split("the resolved config of task 0\n")[1])
    assert config["run_dir"] == "r/seed=1,g_optim.lr=1e-3" and config["g_optim"]["lr"] == 1e-3


def test_a_pipeline_is_a_chain_with_resources_of_its_own_per_stage(tmp_path, capsys):
    cluster = write(
        tmp_path / "c.yaml",
        partition="gpu",
        gpus_per_node=2,
        verbs={"prepare": {"partition": "cpu"}, "embed": {"gpus_per_node": 1}, "gan": {"nodes": 1, "time_min": 600}},
    )
    code, out, _ = dry_run(capsys, "--cluster", cluster, "--", "pipeline", debug("pipeline"), "run_dir=p")
    assert code == 0
    scripts = {part.split("\n", 1)[0]: part for part in out.split("# ---- ")[1:]}
    assert list(scripts) == ["prepare", "audit", "encode", "embed", "gan", "generate", "evaluate", "report"]
    assert "--partition=cpu" in scripts["prepare"] and "--gpus-per-node" not in scripts["prepare"]
    assert "--gpus-per-node=1" in scripts["embed"] and "--gpus-per-node=2" in scripts["encode"]
    assert "--time=600" in scripts["gan"] and "--ntasks-per-node=2" in scripts["gan"]
    assert "--dependency=afterok:<id of embed>" in scripts["gan"] and "dependency" not in scripts["prepare"]
    assert yaml.safe_load(scripts["gan"].split("the resolved config\n")[1])["features"] == "p/embed"
    code, out, _ = dry_run(capsys, "--cluster", cluster, "--", "pipeline", debug("pipeline"), "stages.gan.seed=1,2")
    assert code == 0 and out.count("#SBATCH --array=0-1%16") == 8 and "aftercorr:<id of gan>" in out


def test_words_before_the_dashes_lie_over_the_file(tmp_path):
    cluster = write(tmp_path / "c.yaml", nodes=2, tasks_per_node=2, verbs={"gan": {"nodes": 4}, "g2": {"nodes": 8}})
    assert Facts(cluster).of("gan").nodes == 4 and Facts(cluster).of("encode").nodes == 2
    assert Facts(cluster).of("prepare").processes == 1
    assert Facts(cluster, ["nodes=1"]).of("gan").nodes == 1
    assert Facts(cluster, ["nodes=1"]).of("gan", "gan").nodes == 4  # a stage of a pipeline
    assert (
        Facts(cluster, ["verbs.gan.nodes=3"]).of("gan", "g3").nodes == 3 and Facts(cluster).of("gan", "g2").nodes == 8
    )


def test_arithmetic_of_processes_and_batches(tmp_path):
    facts = Facts(write(tmp_path / "c.yaml", nodes=2, tasks_per_node=2, cpus_per_task=3, mem_gb=8, time_min=90))
    lines = arithmetic(make("encode", debug("encode"), [], facts).stages[0])
    assert lines[:3] == [
        "2 nodes x 2 processes = 4 per task",
        "2 x 2 = 4 processes, 3 cores each: 6 cores of a node, 8 GB of its memory",
        "global batch 16 = 4 processes x 4",
    ]
    assert "limit 1.5 h" in lines[3] and "6 process-hours" in lines[3]


@pytest.mark.parametrize(
    "words, says",
    [
        (
            ["nodes=3", "--", "align", debug("align")],
            "batch of 32 does not divide by 3 nodes x 1 processes = 3; set batch",
        ),
        (["nodes=8", "--", "gan", debug("gan")], "mbstd_group"),
        (["time_min=1", "--", "gan", debug("gan")], "signal_lead_s=120 must lie within"),
        (["time_min=86400", "--", "gan", debug("gan")], "counts minutes"),
        (['partition="a\\nb"', "--", "gan", debug("gan")], "control character"),
        (["container.kind=pyxis", "--", "gan", debug("gan")], "container.image"),
        (["nods=2", "--", "gan", debug("gan")], "did you mean nodes"),
        (["verbs.gan.nods=2", "--", "prepare", debug("prepare")], "verbs.gan: unknown key nods; did you mean nodes"),
        (["nodes", "--", "gan", debug("gan")], "fact=value"),
        (["--", "gann", debug("gan")], "no verb 'gann'"),
        (["--", "gan"], "needs a config file"),
        (["--", "gan", debug("gan"), "g_optim.lr=a"], "g_optim.lr"),
        (["--", "doctor"], "by hand"),
        (["--"], "verb is missing"),
        (["--", "gan", debug("gan"), "run_dir=%job"], "'%j'"),
    ],
)
def test_mistakes_are_told_before_anything_is_submitted(tmp_path, capsys, words, says):
    code, _, err = dry_run(capsys, "--cluster", write(tmp_path / "c.yaml"), *words)
    assert code == 2 and says in " ".join(err.split()), err


def test_a_cluster_is_found_by_its_name(capsys):
    assert find("example") == ROOT / "configs" / "cluster" / "example.yaml"
    with pytest.raises(UserError, match="no cluster 'exampel'.*example"):
        find("exampel")
    code, _, err = dry_run(capsys, "--", "gan", debug("gan"))
    assert code == 2 and "--cluster" in err


def test_without_sbatch_the_cure_is_named(tmp_path, capsys):
    code = front.main(["--cluster", write(tmp_path / "c.yaml"), "--", "prepare", debug("prepare"), "run_dir=r"])
    assert code == 2 and "--local" in capsys.readouterr().err


def test_every_cluster_file_and_fact_is_valid():
    for path in (ROOT / "configs" / "cluster").glob("*.yaml"):
        facts = load(Cluster, path)
        assert all(isinstance(Facts(str(path)).of(verb), Cluster) for verb in facts.verbs)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("[!c]*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_a_resolved_config_means_what_it_was_resolved_from(path):
    """A job reads the resolved config."""
    cls = cli.stage(path.parent.name).Config
    config = load(cls, path, ["run_dir=r"] if path.parent.name != "init-dataset" else [])
    again = json.loads(json.dumps(to_dict(config)))
    assert from_dict(cls, again, "resolved") == config
