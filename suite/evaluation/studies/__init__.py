"""Studies of the Mesa layers of a trained model, each a kind of evaluation stage; a file here is one study.

A study has `planned(config, task)`, the settings of its stages for a run's configuration with the `eval` asked for, none
where it does not apply, and `measure(subject, settings)`, the rows of one stage.
"""
