"""What is recorded: the call that makes a module, the tape of edits, the config, and their replay."""
