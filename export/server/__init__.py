"""A repository in, a running tritonserver that stays running out.

Read config, installation, guardian, server, probe, supervisor.
"""
