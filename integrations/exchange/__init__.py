"""Steps as other tools' files, and other tools' files as steps: what `ckptd export` and `ckptd import` do."""
