"""Speed and quality beside a baseline. Never installed; a package because opacus installs one of this name."""
