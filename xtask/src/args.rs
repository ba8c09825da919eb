//! The options of one command line: `--name VALUE`, `--name=VALUE`, flags, names, and what follows `--`.

/// What was typed after the command, taken apart as the command asks for it.
pub(crate) struct Args {
    words: Vec<String>,
    /// Everything after `--`.
    pub(crate) command: Vec<String>,
}

impl Args {
    pub(crate) fn new(mut words: Vec<String>) -> Self {
        let command = match words.iter().position(|w| w == "--") {
            Some(at) => words.drain(at..).skip(1).collect(),
            None => Vec::new(),
        };
        Self { words, command }
    }

    /// Whether the flag was given.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.words.len();
        self.words.retain(|w| w != name);
        self.words.len() != before
    }

    /// The option's value, if it was given.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        let with_sign = format!("{name}=");
        let Some(at) = self.words.iter().position(|w| w == name || w.starts_with(&with_sign)) else {
            return Ok(None);
        };
        let word = self.words.remove(at);
        if let Some(value) = word.strip_prefix(&with_sign) {
            return Ok(Some(value.to_owned()));
        }
        if at == self.words.len() {
            return Err(format!("{name} wants a value"));
        }
        Ok(Some(self.words.remove(at)))
    }

    /// The option's value as a number, or the default.
    pub(crate) fn number(&mut self, name: &str, default: u64) -> Result<u64, String> {
        match self.value(name)? {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| format!("{name} wants a number, not `{text}`")),
        }
    }

    /// The option's value split at blanks; an empty list without it.
    pub(crate) fn list(&mut self, name: &str) -> Result<Vec<String>, String> {
        Ok(self.value(name)?.map(|v| v.split_whitespace().map(str::to_owned).collect()).unwrap_or_default())
    }

    /// What remains must be names.
    pub(crate) fn names(self) -> Result<Vec<String>, String> {
        match self.words.iter().find(|w| w.starts_with('-')) {
            Some(unknown) => Err(format!("no option `{unknown}`")),
            None => Ok(self.words),
        }
    }

    /// Nothing may remain.
    pub(crate) fn done(self) -> Result<(), String> {
        match self.names()?.first() {
            Some(word) => Err(format!("unexpected `{word}`")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Args;

    fn args(line: &str) -> Args {
        Args::new(line.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn options_flags_names_and_the_command_come_apart() {
        let mut a = args("--quick one --runs 3 --json=f two -- cmd --quick");
        assert!(a.flag("--quick") && !a.flag("--slow"));
        assert_eq!(a.number("--runs", 1), Ok(3));
        assert_eq!(a.value("--json"), Ok(Some("f".to_owned())));
        assert_eq!(a.command, ["cmd", "--quick"]);
        assert_eq!(a.names(), Ok(vec!["one".to_owned(), "two".to_owned()]));
    }

    #[test]
    fn what_nobody_asked_for_is_an_error() {
        assert!(args("--sped 3").names().is_err());
        assert!(args("word").done().is_err());
        assert!(args("--runs").value("--runs").is_err());
    }
}
