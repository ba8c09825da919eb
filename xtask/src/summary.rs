//! The JSON summary that `vswap run --json FILE` leaves, read from outside.

use serde_json::Value;
use std::path::Path;

/// The figures the tests ask for.
pub(crate) struct Summary {
    value: Value,
}

impl Summary {
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text =
            std::fs::read_to_string(path).map_err(|e| format!("no summary in {}: {e}", path.display()))?;
        let mut value: Value =
            serde_json::from_str(&text).map_err(|e| format!("the summary is not JSON: {e}"))?;
        if let Some(inner) = value.get_mut("summary") {
            value = inner.take();
        }
        Ok(Self { value })
    }

    /// A number by its path; a field that is not there is an error, never zero.
    pub(crate) fn number(&self, path: &str) -> Result<u64, String> {
        let pointer = format!("/{}", path.replace('.', "/"));
        let value = self.value.pointer(&pointer).ok_or_else(|| format!("the summary has no {path}"))?;
        value
            .as_u64()
            .or_else(|| value.as_f64().map(|f| f as u64))
            .ok_or_else(|| format!("{path} is not a number"))
    }

    /// A yes or no by its name.
    pub(crate) fn is(&self, name: &str) -> Option<bool> {
        self.value.get(name)?.as_bool()
    }

    /// Faults of one kind: soft, pool, file or zero.
    pub(crate) fn faults(&self, kind: &str) -> Result<u64, String> {
        self.number(&format!("faults.{kind}.count"))
    }

    /// The whole of it, for a report.
    pub(crate) fn into_value(self) -> Value {
        self.value
    }
}
