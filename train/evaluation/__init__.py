"""Predictions and labels in, the challenge's scores, reports and submissions out.

Read metrics, scores, prediction, report, submission, tuning, trained_model.
"""
