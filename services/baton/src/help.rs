//! `baton --help`: the commands in groups, in the order in which a user comes to need them.

use std::fmt::Write as _;

use clap::Command;

/// Every command that is not hidden, once.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Start", &["demo", "up", "setup", "doctor", "context"]),
    ("Jobs", &["submit", "job", "result", "cancel", "jobs", "batch"]),
    ("Run a pipeline", &["provision", "worker", "gateway", "planner", "role"]),
    ("Look after a pipeline", &["top", "dlq", "reconcile", "kv"]),
    ("Measure and plan", &["bench", "calibrate", "plan", "run", "verify"]),
    ("Shell", &["completions"]),
];

/// Room for the longest name of a command.
const NAME_COLUMNS: usize = 12;

/// Has the command's help list its commands in groups, which clap by itself can't.
pub fn in_groups(command: Command) -> Command {
    let header = command.get_styles().get_header();
    let template = format!(
        "{{before-help}}{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n\
         {}{header}Options:{header:#}\n{{options}}{{after-help}}",
        listing(&command)
    );
    command.help_template(template)
}

fn listing(command: &Command) -> String {
    let (header, literal) = (command.get_styles().get_header(), command.get_styles().get_literal());
    let mut text = String::new();
    for (title, names) in GROUPS {
        let _ = writeln!(text, "{header}{title}:{header:#}");
        for subcommand in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
            let name = subcommand.get_name();
            let _ = writeln!(text, "  {literal}{name}{literal:#}{:1$}{about}", "", NAME_COLUMNS - name.len() + 1);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_is_in_one_group_and_fits_a_line() {
        let command = in_groups(crate::Arguments::command());
        let mut listed: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let mut visible: Vec<&str> =
            command.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name).collect();
        listed.sort_unstable();
        visible.sort_unstable();
        assert_eq!(listed, visible);

        let help = command.clone().render_help().to_string();
        for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let (name, about) = (subcommand.get_name(), subcommand.get_about().unwrap().to_string());
            let line = format!("  {name:NAME_COLUMNS$} {about}");
            assert!(help.lines().any(|other| other == line), "{line:?} is not in\n{help}");
            assert!(line.len() <= 100, "{line:?} needs more than 100 columns");
        }
    }
}
