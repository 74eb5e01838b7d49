"""The recipes of the page on studies do what it says."""

import re
from pathlib import Path

import pytest

import landscape_core as lc

PAGE = Path(__file__).resolve().parents[2] / "book" / "studies.md"


def block(word: str) -> str:
    """The code block of the page that has a word."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = [code for code in blocks if word in code]
    return found


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = block("def run(width").replace("[64, 256, 1024]", "[4, 8]")
    source = source.replace("range(5)", "range(2)").replace(
        "epochs: int = 20", "epochs: int = 1"
    )
    module = tmp_path / "example.py"  # in a file, where its source can be found
    module.write_text(source)
    names: dict = {"__name__": "example"}
    exec(compile(source, str(module), "exec"), names)
    table = names["table"]
    assert table["status"].tolist() == ["done"] * 4, table["message"].tolist()
    assert {"trace", "trace_stderr", "lambda_max"} <= set(table.columns)
    assert len(names["study"].arrays(width=4, seed=0)["eigenvalues"]) == 3


def test_a_run_that_begins_where_another_one_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "import landscape_core as lc\nimport torch.nn.functional as F\n"
    source += block("def train_network") + "\nmeasured = lc.Study('noise', noise, 'runs')\n"
    module = tmp_path / "nested.py"
    module.write_text(source)
    names: dict = {"__name__": "nested"}
    exec(compile(source, str(module), "exec"), names)
    runs = lc.grid(width=4, seed=0, draws=[2, 3])
    table = names["measured"].run(runs, progress=False)
    assert table["status"].tolist() == ["done"] * 2, table["message"].tolist()
    assert len(names["networks"].table()) == 1
    assert names["measured"].arrays(width=4, seed=0, draws=3)["accuracies"].shape[1] == 3


@pytest.mark.filterwarnings("default")
def test_the_slurm_recipe_asks_for_what_it_says():
    source = block("SLURMCluster(").split("cluster.scale")[0]
    names: dict = {}
    # Only the job script is made: no job is submitted before the cluster is scaled.
    exec(source, names)
    script = names["cluster"].job_script()
    names["cluster"].close()
    for line in ("#SBATCH -p normal", "#SBATCH --cpus-per-task=4", "#SBATCH -t 04:00:00",
                 "export OMP_NUM_THREADS=1", "--nworkers 4", "--nthreads 1",
                 "--lifetime 230m"):  # fmt: skip
        assert line in script, script
    assert re.search(r"#SBATCH --mem=1[56]G", script)


def test_the_gpu_recipe_names_the_cluster_with_a_worker_to_a_gpu():
    assert "LocalCUDACluster()" in block("LocalCUDACluster")
