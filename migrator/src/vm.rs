//! Resolves `<vm>`.
