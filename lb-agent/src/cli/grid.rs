//! How tables and lists are laid out, whatever is in them.

use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};

use super::units::short;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// All columns, exact numbers.
    pub wide: bool,
    pub colour: bool,
}

pub fn paint(text: &str, colour: Color, coloured: bool) -> String {
    if !coloured {
        return text.to_owned();
    }
    let colour = match colour {
        Color::Yellow => anstyle::AnsiColor::Yellow,
        _ => anstyle::AnsiColor::Red,
    };
    let style = colour.on_default();
    format!("{style}{text}{style:#}")
}

/// Lines `name:  value` with the values below one another.
#[derive(Default)]
pub struct Pairs(String);

impl Pairs {
    pub fn add(&mut self, name: &str, value: &str) {
        let name = if name.is_empty() { String::new() } else { format!("{name}:") };
        let _ = writeln!(self.0, "{name:14}{}", or_dash(value));
    }

    /// A sentence, on as many lines as it takes.
    pub fn add_sentence(&mut self, name: &str, sentence: &str) {
        let mut name = name;
        for line in wrapped(sentence, WIDTH - VALUES) {
            self.add(std::mem::take(&mut name), &line);
        }
    }

    pub fn finish(self) -> String {
        self.0
    }
}

/// Broken between words, where it is too long.
fn wrapped(sentence: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in sentence.split(' ') {
        let line = lines.last_mut().expect("there is one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Of a terminal, and where values begin in it.
const WIDTH: usize = 80;
const VALUES: usize = 14;

/// A table without lines, two spaces between columns, never wrapped.
pub struct Grid {
    table: Table,
    look: Look,
    header: Vec<Cell>,
    right: Vec<bool>,
}

impl Grid {
    pub fn new(look: Look) -> Grid {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if look.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        Grid { table, look, header: Vec::new(), right: Vec::new() }
    }

    pub fn columns<const N: usize>(&mut self, names: [&str; N]) {
        self.header.extend(names.map(Cell::new));
        self.right.extend([false; N]);
    }

    pub fn numbers<const N: usize>(&mut self, names: [&str; N]) {
        self.header.extend(names.map(Cell::new));
        self.right.extend([true; N]);
    }

    pub fn count(&self, number: u64) -> Cell {
        Cell::new(if self.look.wide { number.to_string() } else { short(number) })
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.table.add_row(cells);
    }

    pub fn finish(mut self) -> String {
        self.table.set_header(self.header);
        for (column, right) in self.table.column_iter_mut().zip(self.right) {
            column.set_padding((0, 2));
            column.set_cell_alignment(if right { CellAlignment::Right } else { CellAlignment::Left });
        }
        self.table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

/// Nothing is shown as `-`.
pub fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}
