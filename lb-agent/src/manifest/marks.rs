//! Where everything stands in a manifest. serde_yaml gives the values but tells no positions once a document
//! is decoded; a second parser walks the same text for positions only, and the two meet at a field's path.

use std::collections::HashMap;
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Parser, Span, options};

/// A position: line and column begin at 1, the column and `width` count characters. A width of 0 is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    pub line: u32,
    pub column: u32,
    pub width: u32,
}

/// The positions of one document's nodes.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    at: Mark,
    inside: Inside,
}

#[derive(Debug, Clone, Default)]
enum Inside {
    #[default]
    Nothing,
    List(Vec<Arc<Marks>>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
struct Entry {
    key: String,
    at: Mark,
    value: Arc<Marks>,
}

/// Which part of the node at a path is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Value,
    /// The key, counted among equal keys of the same map (0 is the first).
    Key(usize),
}

impl Marks {
    /// The marks of each document of `text`, in order. Documents after something that is not YAML are
    /// missing.
    ///
    /// # Errors
    /// Where the text nests deeper than [`DEPTH_MAX`]. Nothing else should look at such a text: the time
    /// that libyaml takes grows with the square of the depth.
    pub fn of(text: &str) -> Result<Vec<Arc<Marks>>, Mark> {
        let mut options = options! { flow_nesting_limit: DEPTH_MAX, block_nesting_limit: DEPTH_MAX };
        options.set_emit_comments(false);
        let mut builder = Builder::default();
        for event in Parser::new_from_str_with_options(text, options) {
            match event {
                Ok((event, span)) => builder.take(event, &span),
                Err(error) if *error.kind() == ErrorKind::RecursionLimitExceeded => {
                    return Err(mark(&Span::empty(*error.marker())));
                }
                Err(_) => break,
            }
        }
        Ok(builder.documents)
    }

    /// The mark of a document that could not be walked: its file's beginning.
    pub fn unknown() -> Arc<Marks> {
        Marks::line(1)
    }

    /// A document on one line of which nothing more is known.
    pub fn line(line: u32) -> Arc<Marks> {
        Arc::new(Marks { at: Mark { line, column: 1, width: 0 }, inside: Inside::Nothing })
    }

    pub fn start(&self) -> Mark {
        self.at
    }

    /// Where `path` (`spec.realServers[2].weight`) stands; where something on the way is missing, the key of
    /// the innermost map or list that is there.
    pub fn locate(&self, path: &str, part: Part) -> Mark {
        let mut node = self;
        let mut key_mark = self.at;
        let mut steps = steps(path).peekable();
        while let Some(step) = steps.next() {
            let last = steps.peek().is_none();
            match (step, &node.inside) {
                (Step::Key(key), Inside::Map(entries)) => {
                    let mut named = entries.iter().filter(|entry| entry.key == key);
                    let entry = match part {
                        Part::Key(nth) if last => named.nth(nth),
                        _ => named.next(),
                    };
                    let Some(entry) = entry else { return key_mark };
                    if last && matches!(part, Part::Key(_)) {
                        return entry.at;
                    }
                    key_mark = entry.at;
                    node = &entry.value;
                }
                (Step::Index(index), Inside::List(items)) => {
                    let Some(item) = items.get(index) else { return key_mark };
                    key_mark = item.at;
                    node = item;
                }
                _ => return key_mark,
            }
        }
        node.at
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    let indices = |segment: &str| segment.match_indices('[').map(|(at, _)| at).next();
    path.split('.').filter(|segment| !segment.is_empty()).flat_map(move |segment| {
        let (key, rest) = segment.split_at(indices(segment).unwrap_or(segment.len()));
        let index = |part: &str| part.strip_suffix(']').and_then(|digits| digits.parse().ok());
        let indices: Vec<Step> = rest.split('[').filter_map(index).map(Step::Index).collect();
        (!key.is_empty()).then_some(Step::Key(key)).into_iter().chain(indices)
    })
}

/// Puts a parser's events together. It keeps its own stack, so that nesting costs no recursion.
#[derive(Default)]
struct Builder {
    documents: Vec<Arc<Marks>>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Arc<Marks>>,
}

struct Frame {
    at: Mark,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Arc<Marks>>),
    Map { entries: Vec<Entry>, key: Option<(String, Mark)> },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) {
        let at = mark(span);
        match event {
            Event::DocumentStart(..) => self.anchors.clear(),
            Event::Scalar(text, _, anchor, _) => self.complete(at, Inside::Nothing, anchor, Some(&text)),
            Event::Alias(anchor) => {
                // The value stands where the alias does; what is inside it, at its anchor.
                let inside = self.anchors.get(&anchor).map(|node| node.inside.clone()).unwrap_or_default();
                self.complete(at, inside, 0, None);
            }
            Event::SequenceStart(_, anchor, _) => {
                self.stack.push(Frame { at, anchor, content: Content::List(Vec::new()) });
            }
            Event::MappingStart(_, anchor, _) => {
                let content = Content::Map { entries: Vec::new(), key: None };
                self.stack.push(Frame { at, anchor, content });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Frame { at, anchor, content }) = self.stack.pop() {
                    let inside = match content {
                        Content::List(items) => Inside::List(items),
                        Content::Map { entries, .. } => Inside::Map(entries),
                    };
                    self.complete(Mark { width: 1, ..at }, inside, anchor, None);
                }
            }
            _ => {}
        }
    }

    fn complete(&mut self, at: Mark, inside: Inside, anchor: usize, text: Option<&str>) {
        let node = Arc::new(Marks { at, inside });
        if anchor != 0 {
            self.anchors.insert(anchor, Arc::clone(&node));
        }
        match self.stack.last_mut().map(|frame| &mut frame.content) {
            None => self.documents.push(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map { entries, key }) => match key.take() {
                None => *key = Some((text.unwrap_or_default().to_owned(), at)),
                Some((key, at)) => entries.push(Entry { key, at, value: node }),
            },
        }
    }
}

fn mark(span: &Span) -> Mark {
    let (start, end) = (span.start, span.end);
    let width = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 0 };
    Mark { line: start.line() as u32, column: start.col() as u32 + 1, width: width as u32 }
}

/// How deep lists and maps of a manifest may nest.
pub const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# comment
a: {b: [1, 22, {c: x}]}
d: &anchor
  e: f
---
g: *none
";

    fn at(path: &str, part: Part) -> (u32, u32, u32) {
        let mark = Marks::of(TEXT).unwrap()[0].locate(path, part);
        (mark.line, mark.column, mark.width)
    }

    #[test]
    fn a_path_leads_to_the_value_or_its_key() {
        for (path, part, place) in [
            ("a.b[1]", Part::Value, (2, 12, 2)),
            ("a.b[2].c", Part::Value, (2, 20, 1)),
            ("a.b[2].c", Part::Key(0), (2, 17, 1)),
            ("d.e", Part::Value, (4, 6, 1)),
            ("a.b", Part::Key(0), (2, 5, 1)),
        ] {
            assert_eq!(at(path, part), place, "{path} {part:?}");
        }
    }

    #[test]
    fn what_is_missing_is_reported_at_the_key_of_what_would_hold_it() {
        assert_eq!(at("d.missing", Part::Value), (3, 1, 1));
        assert_eq!(at("a.b[7].c", Part::Value), (2, 5, 1));
    }

    #[test]
    fn documents_after_a_syntax_error_have_no_marks() {
        assert_eq!(Marks::of(TEXT).unwrap().len(), 1, "an unknown anchor ends the walk");
        assert_eq!(Marks::of("a: 1\n---\nb: 2\n").unwrap().len(), 2);
    }

    #[test]
    fn an_alias_stands_where_it_is_written_and_its_inside_at_the_anchor() {
        let marks = Marks::of("a: &x\n  b: 1\nc: *x\n").unwrap();
        assert_eq!(marks[0].locate("c", Part::Value), Mark { line: 3, column: 4, width: 2 });
        assert_eq!(marks[0].locate("c.b", Part::Value), Mark { line: 2, column: 6, width: 1 });
    }

    #[test]
    fn a_text_that_nests_too_deeply_is_given_up() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Marks::of(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(Marks::of(&nested(DEPTH_MAX + 1)).unwrap_err().line, 1);
    }

    #[test]
    fn comments_cost_no_positions() {
        let text = format!("a: 1\n{}b: 2\n", "# comment\n".repeat(1000));
        assert_eq!(Marks::of(&text).unwrap()[0].locate("b", Part::Value).line, 1002);
    }

    #[test]
    fn equal_keys_are_told_apart() {
        let marks = Marks::of("a: 1\na: 2\n").unwrap();
        assert_eq!(marks[0].locate("a", Part::Key(1)).line, 2);
    }
}
