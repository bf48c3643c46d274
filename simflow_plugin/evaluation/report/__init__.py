"""Reports as one self-contained HTML file: its parts, its plots and its image grids."""
