"""What happens while Python imports ``mamba_ssm``: modified copies take the targets' places."""
