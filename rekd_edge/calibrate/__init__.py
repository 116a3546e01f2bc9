"""How sure an exported file may say it is, and when it should rather not answer.

    answers to dev --calibrate--> Calibration (config.json)
    Calibration, answers to test --report--> CalibrationReport (reports/calibration.json)

docs/adr/0020-calibration.md says what was decided, docs/bundle.md what a runtime does with it.
Importing this package imports nothing: the schema (`spec`) is read by targets and bundles.
"""
