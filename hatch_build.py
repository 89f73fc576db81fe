"""Builds the CPU kernels while the package is installed; without a compiler it goes on without them."""

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path(__file__).parent / "src"


class KernelBuildHook(BuildHookInterface):
    """Compiles ``backends/native`` into the package and marks the wheel as made for this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        sys.path.insert(0, str(SOURCE))
        from nanollama.backends.native import build, locate
        from nanollama.errors import BackendError

        target = locate.installed_path()
        for old in set(build.SOURCE_DIR.glob("kernels-*.so")) - {target}:
            old.unlink()
        try:
            if not target.exists():
                build.build(target)
        except BackendError as error:
            self.app.display_warning(f"installing without the CPU kernels: {error}")
            return
        build_data["artifacts"].append(f"src/{target.relative_to(SOURCE)}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
