"""`forgetkit plan` and `--dry-run`: what a run will do, need and take, before anything is done.

shape    parameters and FLOPs, from the configuration alone
memory   bytes of every stage at its fullest, from its own step run on tensors without values
rates    seconds of each kind of work, timed for some seconds on this machine
work     what every stage does: tokens, steps, bytes written, and its time at those rates
fit      what this machine holds, and what to set where it does not
build    all of it as one answer; render shows it
"""
