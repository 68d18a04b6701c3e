//! What is wrong in a manifest and where: as one line, as a picture of the source, and as data for the API.

use std::fmt;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::{Deserialize, Serialize};

use super::Source;

/// One mistake. Displayed as `web.yaml:14:9: spec.realServers[2].weight: 70000 is above 65535`, followed by
/// the help, if any, on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// How many characters from there are meant; 0 where that is not known.
    #[serde(default)]
    pub width: u32,
    /// The field, or empty where the document as a whole is meant.
    #[serde(default)]
    pub path: String,
    pub message: String,
    /// What would be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Diagnostic {
    /// "spec.realServers[2].weight: 70000 is above 65535".
    fn title(&self) -> String {
        match self.path.as_str() {
            "" => self.message.clone(),
            path => format!("{path}: {}", self.message),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.title())?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a set of manifests, in the order of the files and their lines. Not empty
/// when it is an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Report(pub Vec<Diagnostic>);

impl Report {
    /// For a terminal: each mistake with its line of the source and what is meant underlined. A file that is
    /// not among `sources` is named without its text.
    pub fn render(&self, sources: &[Source], colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for diagnostic in &self.0 {
            match sources.iter().find(|source| source.file == diagnostic.file) {
                Some(source) => out.push_str(&picture(&renderer, diagnostic, &source.text)),
                None => out.push_str(&format!("error: {diagnostic}")),
            }
            out.push_str("\n\n");
        }
        out
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

fn picture(renderer: &Renderer, diagnostic: &Diagnostic, text: &str) -> String {
    let line = text.lines().nth(diagnostic.line.saturating_sub(1) as usize).unwrap_or_default();
    let line = line.trim_start_matches('\u{feff}');
    let byte_of = |column: usize| line.char_indices().nth(column).map_or(line.len(), |(byte, _)| byte);
    let start = diagnostic.column.saturating_sub(1) as usize;
    let span = byte_of(start)..byte_of(start + diagnostic.width.max(1) as usize);
    let title = diagnostic.title();
    let snippet = Snippet::source(line)
        .line_start(diagnostic.line as usize)
        .path(diagnostic.file.as_str())
        .annotation(AnnotationKind::Primary.span(span));
    let mut group = Level::ERROR.primary_title(title.as_str()).element(snippet);
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    renderer.render(&[group]).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic() -> Diagnostic {
        Diagnostic {
            file: "web.yaml".into(),
            line: 2,
            column: 9,
            width: 5,
            path: "spec.realServers[2].weight".into(),
            message: "70000 is above 65535".into(),
            help: Some("a weight is 0 to 65535".into()),
        }
    }

    #[test]
    fn a_diagnostic_reads_file_line_column_field_message() {
        assert_eq!(
            diagnostic().to_string(),
            "web.yaml:2:9: spec.realServers[2].weight: 70000 is above 65535\n  help: a weight is 0 to 65535"
        );
        let bare = Diagnostic { path: String::new(), help: None, ..diagnostic() };
        assert_eq!(bare.to_string(), "web.yaml:2:9: 70000 is above 65535");
    }

    #[test]
    fn the_picture_underlines_what_is_meant() {
        let source = Source { file: "web.yaml".into(), text: "a: b\nweight: 70000 # ü\n".into() };
        let picture = Report(vec![diagnostic()]).render(&[source], false);
        assert!(picture.contains("2 | weight: 70000 # ü"), "{picture}");
        assert!(picture.contains("\n  |         ^^^^^\n"), "{picture}");
        assert!(picture.contains("help: a weight is 0 to 65535"), "{picture}");
    }

    #[test]
    fn a_picture_of_a_place_beyond_the_text_does_not_panic() {
        for (line, column, width) in [(0, 0, 0), (99, 1, 1), (1, 99, 99), (2, 16, 4)] {
            let source = Source { file: "web.yaml".into(), text: "a: b\nweight: 70000 # ü\n".into() };
            let report = Report(vec![Diagnostic { line, column, width, ..diagnostic() }]);
            assert!(report.render(&[source], false).contains("70000 is above 65535"));
        }
    }
}
