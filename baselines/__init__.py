"""The compared systems, one YAML each: `python run_recbole.py --config_files=baselines/<system>.yaml`. docs/compared.md tells of them."""
