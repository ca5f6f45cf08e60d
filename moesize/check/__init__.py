"""`moesize check`: deployment files of a repository, understood, planned and judged.

From a file to findings: `discovery` finds files, `formats` finds the reader of each, a reader
under `readers/` makes `server.Server`s of it, `assess` plans and judges them, `suppressions` and
`baseline` say what does not count. `run.check_files` does all of it.
"""
