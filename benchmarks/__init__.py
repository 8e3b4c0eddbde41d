"""Speed, side by side with what a user would write otherwise, in one run, as ratios.

python -m benchmarks            every budget, as a table
python -m benchmarks NAME ...   some of them
python -m benchmarks --deeplay PYTHON   also Deeplay, with the interpreter of an environment that has it
"""
