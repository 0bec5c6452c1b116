"""Monitoring of backups: status, metrics, alerts, forecast, the doctor.

Promises that monitoring changes no archive and no live data, and that a missed target is never shown as met. May import
every other room of the engine; none of them imports this one.
"""
