"""Steps that are files: what is written below `ckptd://job/step-12/`. See docs/files.md."""
