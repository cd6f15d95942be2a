//! What a crate's files declare and name, read as words: enough of Rust to follow `mod`, `use` and paths, without tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// One module, by its path below the crate's root.
#[derive(Default)]
pub struct Module {
    /// The file that holds it; a module in braces lies in its parent's.
    pub file: PathBuf,
    pub children: BTreeSet<String>,
    pub imports: Vec<Import>,
    pub definitions: BTreeSet<String>,
    /// Paths of two segments or more, outside of imports.
    pub paths: BTreeSet<Vec<String>>,
    /// Every word of the code outside of imports.
    pub words: BTreeSet<String>,
}

pub struct Import {
    /// As it is written, such as `super`, `store`, `Error`.
    pub path: Vec<String>,
    /// The name it gets here; `*` stands for all names.
    pub name: String,
    /// Passed on to others by `pub`, to whomever.
    pub passed_on: bool,
}

/// All modules of a crate that no test alone needs, from the file of its root on.
pub fn modules(root: &Path) -> BTreeMap<Vec<String>, Module> {
    let mut found = BTreeMap::new();
    let mut open = vec![(Vec::new(), root.to_owned())];
    while let Some((path, file)) = open.pop() {
        let folder = match file.file_stem().unwrap().to_str().unwrap() {
            "lib" | "main" | "mod" => file.parent().unwrap().to_owned(),
            _ => file.with_extension(""),
        };
        let source = fs::read_to_string(&file).unwrap();
        let mut reader = Reader { words: words(&source), place: 0, file: &file, files: Vec::new(), found: &mut found };
        reader.module(path.clone());
        for child in reader.files {
            let place = child[path.len()..].iter().fold(folder.clone(), |folder, name| folder.join(name));
            let flat = place.with_extension("rs");
            open.push((child, if flat.exists() { flat } else { place.join("mod.rs") }));
        }
    }
    found
}

struct Reader<'a> {
    words: Vec<String>,
    place: usize,
    file: &'a Path,
    /// Modules that have files of their own.
    files: Vec<Vec<String>>,
    found: &'a mut BTreeMap<Vec<String>, Module>,
}

impl Reader<'_> {
    fn word(&self, ahead: usize) -> &str {
        self.words.get(self.place + ahead).map_or("", String::as_str)
    }

    fn take(&mut self) -> String {
        self.place += 1;
        self.words[self.place - 1].clone()
    }

    /// Reads until the module's closing brace, or the end of the file.
    fn module(&mut self, path: Vec<String>) {
        let mut module = Module { file: self.file.to_owned(), ..Module::default() };
        let mut depth = 0;
        let mut passed_on = false;
        while self.place < self.words.len() {
            match self.word(0) {
                "}" if depth == 0 => break,
                "#" => self.attribute(),
                "pub" => {
                    self.place += 1;
                    if self.word(0) == "(" {
                        self.group();
                    }
                    passed_on = true;
                    continue;
                }
                "mod" if is_name(self.word(1)) => self.child(&path, &mut module),
                "use" => {
                    self.place += 1;
                    self.import(&[], passed_on, &mut module.imports);
                }
                "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static" if depth == 0 => {
                    self.place += 1;
                    if is_name(self.word(0)) {
                        module.definitions.insert(self.word(0).to_owned());
                    }
                }
                word if is_name(word) => self.path(&mut module),
                word => {
                    depth += i32::from(word == "{") - i32::from(word == "}");
                    self.place += 1;
                }
            }
            passed_on = false;
        }
        self.found.insert(path, module);
    }

    /// `mod name;` or `mod name { ... }`.
    fn child(&mut self, path: &[String], module: &mut Module) {
        self.place += 1;
        let name = self.take();
        module.children.insert(name.clone());
        let child = [path, &[name]].concat();
        if self.word(0) == "{" {
            self.place += 1;
            self.module(child);
        } else {
            self.files.push(child);
        }
        self.place += 1;
    }

    /// An attribute; with one that says `cfg(test)`, what it stands before.
    fn attribute(&mut self) {
        let start = self.place;
        self.place += if self.word(1) == "!" { 2 } else { 1 };
        self.group();
        let text = self.words[start..self.place].concat();
        if !text.starts_with("#[cfg(test") && !text.starts_with("#[cfg(all(test") {
            return;
        }
        while self.word(0) == "#" {
            self.attribute();
        }
        let item = ["pub", "use", "mod", "fn", "struct", "enum", "impl", "trait", "type", "const", "static", "async"];
        let (item, import) = (item.contains(&self.word(0)), self.word(0) == "use" || self.word(1) == "use");
        loop {
            match self.word(0) {
                ";" => return self.place += 1,
                "," if !item => return self.place += 1,
                "}" | "" => return,
                "{" if !import => return self.group(),
                "(" | "[" | "{" => self.group(),
                _ => self.place += 1,
            }
        }
    }

    /// From an opening bracket to behind its closing one.
    fn group(&mut self) {
        let mut depth = 0;
        while self.place < self.words.len() {
            match &*self.take() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// What stands behind `use`, or one branch of it.
    fn import(&mut self, stem: &[String], passed_on: bool, imports: &mut Vec<Import>) {
        let mut path = stem.to_vec();
        loop {
            match self.word(0) {
                "::" => self.place += 1,
                "{" => {
                    self.place += 1;
                    while !["}", ""].contains(&self.word(0)) {
                        self.import(&path, passed_on, imports);
                        // The comma, or a word that only a macro knows.
                        self.place += usize::from(self.word(0) != "}");
                    }
                    self.place += 1;
                    return;
                }
                "as" => {
                    self.place += 1;
                    let name = self.take();
                    return imports.push(Import { path, name, passed_on });
                }
                "*" => {
                    self.place += 1;
                    return imports.push(Import { path, name: "*".into(), passed_on });
                }
                word if is_name(word) => {
                    if word != "self" || path.is_empty() {
                        path.push(word.to_owned());
                    }
                    self.place += 1;
                }
                _ => break,
            }
        }
        let name = path.last().cloned().unwrap_or_default();
        imports.push(Import { path, name, passed_on });
    }

    fn path(&mut self, module: &mut Module) {
        let within = self.place.checked_sub(1).is_some_and(|before| [".", "::"].contains(&&*self.words[before]));
        let mut path = vec![self.take()];
        while self.word(0) == "::" && is_name(self.word(1)) {
            self.place += 1;
            path.push(self.take());
        }
        if within {
            return;
        }
        module.words.insert(path[0].clone());
        if path.len() > 1 {
            module.paths.insert(path);
        }
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The source's words and signs, without comments, texts and lifetimes.
fn words(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let at = |place: usize| text.get(place).copied().unwrap_or(' ');
    let mut words = Vec::new();
    let mut place = 0;
    while place < text.len() {
        match text[place] {
            '/' if at(place + 1) == '/' => place = end(&text, place, "\n"),
            '/' if at(place + 1) == '*' => place = end(&text, place, "*/"),
            '"' => place = end_of_text(&text, place),
            '\'' if at(place + 1) == '\\' => place = end(&text, place + 3, "'"),
            '\'' if at(place + 2) == '\'' => place += 3,
            '\'' => {
                place += 1 + text[place + 1..].iter().take_while(|sign| sign.is_alphanumeric() || **sign == '_').count()
            }
            ':' if at(place + 1) == ':' => {
                words.push("::".into());
                place += 2;
            }
            sign if sign.is_alphanumeric() || sign == '_' => {
                let word: String =
                    text[place..].iter().take_while(|sign| sign.is_alphanumeric() || **sign == '_').collect();
                place += word.chars().count();
                match (&*word, at(place)) {
                    ("r" | "br", '#' | '"') if at(place) == '"' || "#\"".contains(at(place + 1)) => {
                        let signs = text[place..].iter().take_while(|sign| **sign == '#').count();
                        place = end(&text, place + signs + 1, &format!("\"{}", "#".repeat(signs)));
                    }
                    ("b" | "c", '"') => {}
                    _ => words.push(word),
                }
            }
            sign => {
                if !sign.is_whitespace() {
                    words.push(sign.into());
                }
                place += 1;
            }
        }
    }
    words
}

/// Behind the next `mark`.
fn end(text: &[char], from: usize, mark: &str) -> usize {
    let mark: Vec<char> = mark.chars().collect();
    let found = text[from..].windows(mark.len()).position(|window| window == mark);
    found.map_or(text.len(), |found| from + found + mark.len())
}

fn end_of_text(text: &[char], from: usize) -> usize {
    let mut place = from + 1;
    while place < text.len() && text[place] != '"' {
        place += if text[place] == '\\' { 2 } else { 1 };
    }
    place + 1
}
