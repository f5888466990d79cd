#!/bin/sh
# Runs a C or C++ compiler, through ccache where it is installed.
command -v ccache >/dev/null 2>&1 && exec ccache "$@"
exec "$@"
