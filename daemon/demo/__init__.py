"""`ckptd demo`: train on a cluster of this machine's processes, lose nodes, and prove that nothing else was lost.

Empty, so that `tied`, which starts every process, loads nothing. The entry is `ckptd.daemon.demo.run.run_demo`.
"""
