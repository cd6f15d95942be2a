//! Which files of a crate use each other in a circle.
//!
//! A file uses another if a path in it, or an import, leads to something that the other defines, also where others pass it on. What
//! the file of a module above defines is for all that lies below it, so such a use counts for nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use crate::scan::{Import, Module, modules};

type Modules = BTreeMap<Vec<String>, Module>;

/// One file that uses another.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    /// Relative to the folder of the crate's root.
    pub from: PathBuf,
    pub to: PathBuf,
    /// The path in `from` that leads there.
    pub named: String,
}

impl fmt::Display for Arrow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} -> {} ({})", self.from.display(), self.to.display(), self.named)
    }
}

/// The circles among arrows, each as the arrows between its members.
pub fn circles(arrows: &[Arrow]) -> Vec<Vec<&Arrow>> {
    let files: BTreeSet<&PathBuf> = arrows.iter().map(|arrow| &arrow.from).collect();
    let reach: BTreeMap<_, _> = files.iter().map(|file| (*file, reachable(file, arrows))).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for file in files {
        let members: BTreeSet<_> =
            reach[file].iter().filter(|other| reach.get(*other).is_some_and(|back| back.contains(file))).collect();
        if !members.is_empty() && seen.insert(members.clone()) {
            let between = |arrow: &&Arrow| members.contains(&&arrow.from) && members.contains(&&arrow.to);
            found.push(arrows.iter().filter(between).collect());
        }
    }
    found
}

fn reachable<'a>(from: &'a PathBuf, arrows: &'a [Arrow]) -> BTreeSet<&'a PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for arrow in arrows.iter().filter(|arrow| arrow.from == *file) {
            if found.insert(&arrow.to) {
                open.push(&arrow.to);
            }
        }
    }
    found
}

/// Which files of the crate with this root use which others.
pub fn arrows(root: &Path) -> Vec<Arrow> {
    let (modules, folder) = (&modules(root), root.parent().unwrap());
    let mut arrows = Vec::new();
    for (place, module) in modules {
        let needed = |import: &&Import| !import.passed_on || module.words.contains(&import.name);
        let imports = module.imports.iter().filter(needed).map(|import| (&import.path, import.name == "*"));
        for (path, all) in imports.chain(module.paths.iter().map(|path| (path, false))) {
            let Some(target) = follow(modules, place, path, &mut BTreeSet::new()) else { continue };
            // What is used of a module that was imported as a whole, the paths through it tell.
            let (from, to) = (&module.file, &modules[&target.module].file);
            if from != to && !place.starts_with(&target.module) && (target.item || all) {
                let within = |file: &Path| file.strip_prefix(folder).unwrap().to_owned();
                arrows.push(Arrow { from: within(from), to: within(to), named: path.join("::") });
            }
        }
    }
    arrows.sort();
    arrows.dedup_by(|one, other| one.from == other.from && one.to == other.to);
    arrows
}

/// Where a path ends.
struct Target {
    module: Vec<String>,
    /// Whether it names something in the module, or the module itself.
    item: bool,
}

/// Follows a path from a module on, through what others import and pass on; nothing if it leaves the crate.
fn follow(modules: &Modules, from: &[String], path: &[String], tried: &mut BTreeSet<Vec<String>>) -> Option<Target> {
    let mut place = from.to_vec();
    let mut rest = path;
    while let Some(first) = rest.first() {
        match &**first {
            "crate" => place.clear(),
            "self" => {}
            "super" => drop(place.pop()?),
            _ => break,
        }
        rest = &rest[1..];
    }
    if !tried.insert([&place[..], &["::".into()], rest].concat()) {
        return None;
    }
    let Some(name) = rest.first() else { return Some(Target { module: place, item: false }) };
    let module = modules.get(&place)?;
    if module.children.contains(name) {
        place.push(name.clone());
        return follow(modules, &place, &within(&rest[1..]), tried);
    }
    // `use anyhow::anyhow` names the crate before it has brought the macro.
    let brings = |import: &&Import| import.name == *name && import.path[0] != *name;
    if let Some(import) = module.imports.iter().find(brings) {
        return follow(modules, &place, &[&import.path, &rest[1..]].concat(), tried);
    }
    if module.definitions.contains(name) {
        return Some(Target { module: place, item: true });
    }
    for import in module.imports.iter().filter(|import| import.name == "*") {
        if let Some(all) = follow(modules, &place, &import.path, tried).filter(|all| !all.item) {
            let there = &modules[&all.module];
            if there.definitions.contains(name) || there.imports.iter().any(|import| import.name == *name) {
                return follow(modules, &all.module, &within(rest), tried);
            }
        }
    }
    // Macros are defined nowhere; a path that begins with a bare name may also begin at another crate.
    (rest.len() < path.len()).then_some(Target { module: place, item: true })
}

fn within(path: &[String]) -> Vec<String> {
    [&["self".to_owned()], path].concat()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_circle_is_found_through_what_others_pass_on_and_tests_make_none() {
        let crate_of = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let file = folder.path().join(name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            let arrows = arrows(&folder.path().join("lib.rs"));
            circles(&arrows)
                .iter()
                .map(|circle| circle.iter().map(ToString::to_string).collect())
                .collect::<Vec<Vec<_>>>()
        };
        let root = ("lib.rs", "mod a;\nmod b;\npub use a::inner::Item;\npub struct Shared;");
        let inner = ("a/inner.rs", "use crate::{Shared, b};\npub struct Item;\nfn f() -> Shared { b::g() }");
        let a = ("a.rs", "pub mod inner;\nuse inner::Item;");
        let both = crate_of(&[root, a, inner, ("b.rs", "use crate::Item;\npub fn g() {}")]);
        assert_eq!(both, [["a/inner.rs -> b.rs (b::g)", "b.rs -> a/inner.rs (crate::Item)"]]);
        let quiet =
            "// use crate::Item;\npub fn g() { \"crate::Item\"; }\n#[cfg(test)]\nmod tests { use crate::Item; }";
        assert!(crate_of(&[root, a, inner, ("b.rs", quiet)]).is_empty());
    }
}
