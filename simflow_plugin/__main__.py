"""`python -m simflow_plugin COMMAND`: `simflow COMMAND` of the package that Python finds first."""

from simflow_plugin.cli.app import main

if __name__ == "__main__":
    main()
