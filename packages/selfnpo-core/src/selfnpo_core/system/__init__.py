"""The machine below the models: files, locks, signals, processes, memory, devices, extras, others' private names."""
