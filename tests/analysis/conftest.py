import json

import pandas as pd
import pytest
import yaml


@pytest.fixture
def synthetic_run(tmp_path):
    """Write a run folder with given curves: `usage` and `drift` are columns by name, the steps are 10, 20, …."""

    def write(name, seed=0, quantizer="nsvq.quantizers.NSVQ", usage=None, drift=None, psnr=(), options=None, **args):
        folder = tmp_path / "runs" / name
        (folder / "curves").mkdir(parents=True)
        init_args = {"dim": 4, "codebook_size": 16, **args}
        model = {"quantizer": {"class_path": quantizer, "init_args": init_args}, **(options or {})}
        config = {"seed_everything": seed, "trainer": {"callbacks": None}, "model": {"class_path": "VQVAE"}}
        config["model"]["init_args"] = model
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "environment.json").write_text(json.dumps({"command": "nsvq fit", "train_steps": 40}))
        usage = usage or {"codebook_utilization": [0.25, 0.5]}
        table = pd.DataFrame(usage)
        table.insert(0, "step", 10 * (1 + table.index))
        table.insert(1, "split", "val")
        defaults = {"codebook_utilization_ceiling": 1.0, "perplexity": 2.0, "quantization_error": 0.5, "dead_codes": 8}
        for column, value in {**defaults, "dead_code_fraction": 0.5}.items():
            if column not in table:
                table[column] = value
        table.to_csv(folder / "curves" / "codebook.csv", index=False)
        if drift is not None:
            table = pd.DataFrame(drift)
            table.insert(0, "step", 10 * (1 + table.index))
            table.assign(delta_steps=10).to_csv(folder / "curves" / "drift.csv", index=False)
        rows = {"step": [10 * (1 + place) - 1 for place in range(len(psnr))], "val/psnr": list(psnr)}
        pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)
        return folder

    return write
