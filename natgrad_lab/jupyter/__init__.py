"""JupyterLab on the notebooks: how it is started, and the settings it starts with (`labconfig/`)."""

from natgrad_lab.jupyter.launch import lab_environment, lab_options, start_lab

__all__ = ["lab_environment", "lab_options", "start_lab"]
