"""`--gpu local`: the GPUs of this machine, as the driver names them."""

from __future__ import annotations

from moesize.core.errors import EnvironmentProblem

_TIMEOUT_S = 20


def local_gpu() -> tuple[str, int]:
    """(driver name, how many) of the GPUs of this machine; all must be equal.

    Asks nvidia-smi. Raises EnvironmentProblem where there is none or they differ.
    """
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise EnvironmentProblem(
            "no NVIDIA driver on this machine (nvidia-smi not found)",
            "name the GPU instead, such as --gpu a10g; `moesize gpus` lists all",
        )
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentProblem(
            f"nvidia-smi does not answer ({type(error).__name__})", "name the GPU instead"
        ) from error
    names = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if not names:
        raise EnvironmentProblem("nvidia-smi lists no GPU", "name the GPU instead")
    if len(set(names)) > 1:
        raise EnvironmentProblem(
            f"this machine has different GPUs: {', '.join(sorted(set(names)))}",
            "name one of them with --gpu and --gpus",
        )
    return names[0], len(names)
