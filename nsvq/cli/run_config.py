"""The configuration in the run folder."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from nsvq.callbacks.folder import replacing, run_folder


class RunConfig(SaveConfigCallback):
    """Writes the resolved configuration to `<run folder>/config.yaml`; an earlier one stays until the new one is whole.

    It takes Lightning's arguments, with `save_to_log_dir=False`.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; only rank 0 is called."""
        folder = run_folder(trainer)
        if folder is None:
            return
        with replacing(folder / self.config_filename) as part:
            folder.mkdir(parents=True, exist_ok=True)
            part.write_text(self.parser.dump(self.config, skip_none=False))
