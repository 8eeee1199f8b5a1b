"""Judged question sets: questions, answers, judges and their scores."""
