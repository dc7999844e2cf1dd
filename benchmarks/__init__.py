"""Never installed. A package all the same: opacus installs one of this name, which would stand before a mere folder."""
