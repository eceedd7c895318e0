//! `tracer doctor`: what it says is so, whatever is missing; and never more than is so.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::bpffs::BpfFs;
use tests::cgroup::{self, Cgroup};
use tests::doctor::{Doctor, run_doctor};
use tests::host::{HostLock, Settings};
use tests::kubernetes::read;
use tests::leftovers::Leftovers;
use tests::neigh::{FIRST_SILENT, burst, thresholds};
use tests::process::check;
use tests::rights::{ForAnyone, words};
use tests::unseen::has_type_name;
use tests::{Agent, Family, Lab, Thresholds};

/// Runs `f` alone on this host and panics if it leaves something in the kernel.
fn leaving_nothing(f: impl FnOnce(&mut HostLock)) {
    let mut lock = HostLock::take();
    let before = Leftovers::now();
    f(&mut lock);
    before.assert_none_new();
}

/// In a mount namespace of its own, after this script.
fn after(script: &str) -> [String; 6] {
    let script = format!("{script}\nexec \"$@\"");
    ["unshare", "--mount", "sh", "-ec", &script, "sh"].map(str::to_owned)
}

/// Words for a shell: from here on without capabilities, where the programs do not matter. Loading them
/// is what takes doctor's time.
const QUICKLY: &str = "set -- setpriv --inh-caps=-all --bounding-set=-all \"$@\"";

/// Words for a shell: no cgroup2 is mounted any more.
const WITHOUT_CGROUP2: &str = "while read -r _ where type _; do \
     if [ \"$type\" = cgroup2 ]; then umount --lazy \"$where\"; fi; \
     done </proc/self/mounts";

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().expect("it is text")
}

/// What can be said without any right, compared with what the kernel says.
fn assert_node(doctor: &Doctor) {
    assert_said(doctor, |_| true);
}

/// The same by who is not root: some files are root's.
fn assert_node_to_anyone(doctor: &Doctor) {
    assert_said(doctor, |path| {
        // One that is not there has no value anyhow.
        fs::metadata(path).is_ok_and(|of| of.permissions().mode() & 0o004 != 0)
    });
}

/// `can_read`: can doctor read this file?
fn assert_said(doctor: &Doctor, can_read: impl Fn(&Path) -> bool) {
    let of = |path: &str| {
        let read = fs::read_to_string(Path::new("/proc/sys").join(path));
        read.ok().map(|text| text.trim().to_owned())
    };
    let json = &doctor.json;
    assert_eq!(of("kernel/osrelease").as_deref(), json["kernel"].as_str());
    assert_eq!(json["architecture"], std::env::consts::ARCH);
    let settings = json["settings"].as_array().expect("it is a list");
    assert!(settings.len() >= 4, "{settings:?}");
    for setting in settings {
        let path = text(setting, "name").replace('.', "/");
        let value = of(&path).filter(|_| can_read(&Path::new("/proc/sys").join(&path)));
        let said = setting["value"].as_i64().map(|value| value.to_string());
        assert_eq!(said, value, "{setting}");
    }
    for (table, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
        let tables = json["tables"].as_array().expect("it is a list");
        let found = tables.iter().find(|t| t["family"] == table);
        let found = found.unwrap_or_else(|| panic!("no {table}: {json:#}"));
        let limits: Vec<u64> = found["limits"]
            .as_array()
            .expect("it is a list")
            .iter()
            .filter_map(Value::as_u64)
            .collect();
        assert_eq!(limits, thresholds(family));
    }
    assert!(!doctor.ended.stderr.contains("panicked"), "{doctor:#?}");
}

#[test]
fn what_a_node_has_is_told_as_it_is() {
    leaving_nothing(|_| {
        let doctor = Doctor::ask(&[], &[]);
        assert!(doctor.will_do(), "{:#}", doctor.json);
        assert_node(&doctor);
        for name in ["neigh", "dns"] {
            assert!(matches!(doctor.hook(name).0, "attached" | "degraded"));
        }
        for hook in doctor.json["hooks"].as_array().expect("it is a list") {
            let (state, reason) = (text(hook, "state"), text(hook, "reason"));
            assert_eq!(state == "attached", reason.is_empty(), "{hook}");
            assert!(!text(hook, "mechanism").is_empty(), "{hook}");
        }
        let mount = cgroup::mount();
        assert_eq!(
            doctor.json["cgroup2"]["detail"],
            mount.to_str().expect("text")
        );
        assert!(doctor.next().contains("tracer agent"), "{}", doctor.next());
    });
}

/// Paths of all fields, such as `hooks[].name`; and of those that are null or empty here, so that what
/// is below them does not show.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>, empty: &mut BTreeSet<String>) {
    match value {
        // Its keys are the programs.
        Value::Object(_) if path.ends_with("verified_instructions") => {}
        Value::Object(members) => {
            for (name, member) in members {
                let path = format!("{path}.{name}");
                let path = path.trim_start_matches('.');
                found.insert(path.to_owned());
                fields(member, path, found, empty);
            }
        }
        Value::Array(items) => {
            if items.is_empty() {
                empty.insert(path.to_owned());
            }
            for item in items {
                fields(item, &format!("{path}[]"), found, empty);
            }
        }
        Value::Null => {
            empty.insert(path.trim_end_matches("[]").to_owned());
        }
        _ => {}
    }
}

#[test]
fn every_field_of_the_json_is_documented_and_no_other() {
    leaving_nothing(|lock| {
        // Small limits, so that there is advice.
        let limits = Thresholds::set(lock, [1, 1, 2]);
        let (mut found, mut empty) = (BTreeSet::new(), BTreeSet::new());
        let doctor = Doctor::ask(&[], &[]);
        drop(limits);
        fields(&doctor.json, "", &mut found, &mut empty);
        let page = read("docs/doctor.md");
        let documented: BTreeSet<String> = page
            .lines()
            .skip_while(|line| !line.starts_with("## JSON"))
            .skip(1)
            .take_while(|line| !line.starts_with("## "))
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(path, _)| path.to_owned())
            .collect();
        let unknown: Vec<_> = found.difference(&documented).collect();
        assert!(unknown.is_empty(), "not in docs/doctor.md: {unknown:?}");
        for path in documented.difference(&found) {
            let hidden = empty.iter().any(|empty| {
                path.strip_prefix(empty.as_str())
                    .is_some_and(|rest| rest.starts_with(['.', '[']))
            });
            assert!(hidden, "{path} is in docs/doctor.md only");
        }
    });
}

#[test]
fn without_root_all_is_said_that_can_be() {
    leaving_nothing(|_| {
        let copy = ForAnyone::copy();
        let wrapper = copy.wrapper(&[]);
        let doctor = Doctor::ask(&words(&wrapper), &[]);
        assert!(!doctor.will_do());
        assert_node_to_anyone(&doctor);
        assert_eq!(doctor.json["btf"]["ok"], true, "{:#}", doctor.json);
        assert_eq!(doctor.json["cgroup2"]["ok"], true, "{:#}", doctor.json);
        for capability in doctor.json["capabilities"]
            .as_array()
            .expect("it is a list")
        {
            assert_eq!(capability["held"], false, "{capability}");
        }
        let able = Doctor::ask(&[], &[]);
        for hook in doctor.json["hooks"].as_array().expect("it is a list") {
            assert_eq!(hook["state"], "unavailable", "{hook}");
            // Rights take nothing from what the kernel has; but whether it takes fexit only shows when it is tried.
            let would = able.named("hooks", text(hook, "name"));
            let mechanism = text(hook, "mechanism").split_once(", fexit");
            match mechanism.filter(|(_, fexit)| fexit.ends_with(" where the kernel takes it")) {
                Some((cgroup, _)) => assert!(text(would, "mechanism").starts_with(cgroup)),
                None => assert_eq!(
                    [&hook["mechanism"], &hook["not_seen"]],
                    [&would["mechanism"], &would["not_seen"]]
                ),
            }
            let reason = text(hook, "reason");
            assert!(reason.contains("CAP_BPF and CAP_PERFMON missing"), "{hook}");
        }
        assert_eq!(doctor.json["next"][0]["command"], "sudo tracer doctor");
        assert_eq!(doctor.json["sources"].as_array().map(Vec::len), Some(3));

        let ended = run_doctor(&words(&wrapper), &[]);
        assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
        for capability in doctor.json["capabilities"]
            .as_array()
            .expect("it is a list")
        {
            for field in ["name", "purpose", "without"] {
                let word = text(capability, field);
                assert!(ended.stdout.contains(word), "{word} in {}", ended.stdout);
            }
        }
        assert!(ended.stdout.contains("sudo tracer doctor"), "{ended:#?}");
    });
}

/// What the kernel lacks is the same whoever asks, and so it is said.
#[test]
fn without_root_what_the_kernel_lacks_is_said() {
    leaving_nothing(|_| {
        let lacking = ["env", "TRACER_WITHOUT=drop_reasons,inet_sk_error_report"];
        let copy = ForAnyone::copy();
        let wrapper = copy.wrapper(&[]);
        let doctor = Doctor::ask(&[&lacking, &words(&wrapper)[..]].concat(), &[]);
        let able = Doctor::ask(&lacking, &[]);
        for hook in ["drops", "tcp"] {
            let (state, lost) = able.hook(hook);
            assert_eq!(state, "degraded", "{lost}");
            let (_, reason) = doctor.hook(hook);
            assert!(reason.starts_with(lost), "{reason}, not {lost}");
            assert!(reason.ends_with("CAP_BPF and CAP_PERFMON missing"));
        }
    });
}

#[test]
fn root_of_a_user_namespace_is_nobody() {
    leaving_nothing(|_| {
        let doctor = Doctor::ask(&["unshare", "--user", "--map-root-user"], &[]);
        assert!(!doctor.will_do());
        assert_eq!(doctor.named("capabilities", "CAP_BPF")["held"], false);
        assert!(
            doctor.next().contains("user namespace"),
            "{}",
            doctor.next()
        );
    });
}

#[test]
fn without_type_information() {
    leaving_nothing(|_| {
        let wrapper = after("mount -t tmpfs none /sys/kernel/btf");
        let doctor = Doctor::ask(&words(&wrapper), &[]);
        assert!(!doctor.will_do());
        assert_node(&doctor);
        assert_eq!(doctor.json["btf"]["ok"], false);
        assert!(text(&doctor.json["btf"], "detail").contains("CONFIG_DEBUG_INFO_BTF"));
        assert!(doctor.hook("neigh").1.contains("BTF"));
        assert!(doctor.next().contains("CONFIG_DEBUG_INFO_BTF"));
    });
}

#[test]
fn without_cgroup2_lookups_are_what_is_missing() {
    leaving_nothing(|_| {
        let wrapper = after(WITHOUT_CGROUP2);
        let doctor = Doctor::ask(&words(&wrapper), &[]);
        assert!(!doctor.will_do());
        let layout = text(&doctor.json["cgroups"], "layout");
        assert!(matches!(layout, "v1" | "none"), "{layout}");
        assert_eq!(doctor.json["cgroups"]["ok"], false);
        let (state, reason) = doctor.hook("dns");
        assert_eq!(state, "unavailable");
        assert!(reason.contains("cgroup2"), "{reason}");
        assert!(doctor.hook("neigh").0 != "unavailable");
        // What it says is to be done helps: of version 1, in a folder that systemd has made read-only.
        let systemd = format!(
            "{WITHOUT_CGROUP2}\nmount -t tmpfs none /sys/fs/cgroup\nmkdir /sys/fs/cgroup/systemd\n\
             mount -t cgroup -o none,name=tracer-test none /sys/fs/cgroup/systemd\n\
             mount -o remount,ro /sys/fs/cgroup"
        );
        for script in [WITHOUT_CGROUP2, &systemd] {
            let quickly = after(&format!("{script}\n{QUICKLY}"));
            let doctor = Doctor::ask(&words(&quickly), &[]);
            let command = doctor.json["next"][0]["command"].as_str();
            let command = command.expect("there is a command");
            let mounted = after(&format!("{script}\n{command}"));
            assert!(Doctor::ask(&words(&mounted), &[]).will_do(), "{command}");
        }
    });
}

#[test]
fn a_hierarchy_of_version_1_makes_the_layout_hybrid() {
    leaving_nothing(|_| {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let place = folder.path().display();
        let one = format!("mount -t cgroup -o none,name=tracer-test none {place}");
        let layout = |script: &str| {
            let doctor = Doctor::ask(&words(&after(&format!("{script}\n{QUICKLY}"))), &[]);
            text(&doctor.json["cgroups"], "layout").to_owned()
        };
        assert_eq!(layout(&one), "hybrid");
        assert_eq!(layout(&format!("{WITHOUT_CGROUP2}\n{one}")), "v1");
    });
}

#[test]
fn a_cgroup_namespace_shows_what_is_below_it_only() {
    leaving_nothing(|_| {
        let cgroup = Cgroup::make("inner");
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let script = format!(
            "echo 0 >{}/cgroup.procs; exec unshare --cgroup sh -ec '{}; mount -t cgroup2 none {}; \
             exec \"$@\"' sh \"$@\"",
            cgroup.path().display(),
            WITHOUT_CGROUP2,
            folder.path().display()
        );
        let doctor = Doctor::ask(&words(&after(&script)), &[]);
        assert_eq!(doctor.json["cgroups"]["ok"], false);
        let costs = doctor.json["cgroups"]["costs"].to_string();
        assert!(costs.contains("not the root"), "{costs}");
    });
}

#[test]
fn without_a_bpf_file_system_the_main_job_runs() {
    leaving_nothing(|_| {
        let wrapper = after("mount -t tmpfs none /sys/fs/bpf");
        let doctor = Doctor::ask(&words(&wrapper), &[]);
        assert!(doctor.will_do());
        let state = &doctor.json["state"];
        assert_eq!(
            (&state["ok"], &state["bpffs"]),
            (&false.into(), &false.into())
        );
        assert!(text(state, "detail").contains("/sys/fs/bpf"), "{state}");
        let mount = "mount -t bpf bpf /sys/fs/bpf";
        assert!(doctor.next().contains(mount), "{}", doctor.next());
        let mounted = format!("mount -t tmpfs none /sys/fs/bpf\n{mount}\n{QUICKLY}");
        let mounted = after(&mounted);
        let doctor = Doctor::ask(&words(&mounted), &[]);
        assert_eq!(doctor.json["state"]["ok"], true, "{:#}", doctor.json);
    });
}

#[test]
fn the_state_folder_and_who_holds_it() {
    leaving_nothing(|_| {
        let bpffs = BpfFs::mount();
        let path = bpffs.join("tracer");
        let path = path.to_str().expect("path is text");
        let quickly = after(QUICKLY);
        let ask =
            |path| Doctor::ask(&words(&quickly), &["--state-dir", path]).json["state"].clone();
        let state = || ask(path);
        let absent = state();
        assert_eq!(
            (&absent["ok"], &absent["pinned"]),
            (&true.into(), &Value::Null)
        );
        assert!(!Path::new(path).exists(), "it is not made by looking");
        let agent = Agent::start(&["--state-dir", path]);
        let held = state();
        assert_eq!(held["holder"], agent.pid(), "{held}");
        assert!(text(&held, "detail").contains("tracer"), "{held}");
        agent.stop_cleanly();
        let left = state();
        assert_eq!((&left["ok"], &left["holder"]), (&true.into(), &Value::Null));
        assert_eq!(left["pinned"], held["pinned"], "the kernel counts on");
        assert!(text(&left, "detail").contains("--detach-all"), "{left}");
        check(Command::new("find").arg(path).args(["-depth", "-delete"]));

        assert_eq!(ask("none")["path"], Value::Null);
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let elsewhere = folder.path().to_str().expect("path is text");
        assert_eq!(ask(elsewhere)["ok"], false);
    });
}

/// Kernels before 5.11 count maps against it; who may not raise it is told so, and nobody else is blamed.
#[test]
fn a_limit_of_locked_memory_is_named_where_the_kernel_has_it() {
    leaving_nothing(|_| {
        let is_charged = has_type_name("bpf_map_memory");
        let limited = ["prlimit", "--memlock=65536:65536", "setpriv"];
        let rights = ["--inh-caps=-sys_resource", "--bounding-set=-sys_resource"];
        let doctor = Doctor::ask(&[&limited[..], &rights].concat(), &[]);
        assert_eq!(doctor.will_do(), !is_charged, "{:#}", doctor.json);
        let (_, reason) = doctor.hook("neigh");
        let named = [reason, &doctor.next()].map(|text| text.contains("RLIMIT_MEMLOCK"));
        assert_eq!(named, [is_charged; 2], "{reason}, {}", doctor.next());
        assert!(!reason.contains("lockdown"), "{reason}");
    });
}

/// A warning at loading is no reason to lose the node. Of a file in the place of the setting: no warning of anybody's is
/// to end this machine.
#[test]
fn a_kernel_that_would_warn_and_panic_is_left_alone() {
    leaving_nothing(|_| {
        let warns = !has_type_name("bpf_mem_alloc");
        let wrapper = after(
            "mount -t tmpfs none /mnt\necho 1 >/mnt/one\n\
             mount --bind /mnt/one /proc/sys/kernel/panic_on_warn",
        );
        let doctor = Doctor::ask(&words(&wrapper), &[]);
        assert_eq!(doctor.will_do(), !warns, "{:#}", doctor.json);
        let (_, reason) = doctor.hook("neigh");
        let named = [reason, &doctor.next()].map(|text| text.contains("kernel.panic_on_warn"));
        assert_eq!(named, [warns; 2], "{reason}, {}", doctor.next());
    });
}

/// Of a file in the place of the kernel's: the modes themselves end with the machine.
#[test]
fn the_mode_of_lockdown_is_read() {
    leaving_nothing(|_| {
        for (line, mode, ok) in [
            ("[none] integrity confidentiality", "none", true),
            ("none [integrity] confidentiality", "integrity", true),
            ("none integrity [confidentiality]", "confidentiality", false),
        ] {
            let wrapper = after(&format!(
                "mount -t tmpfs none /sys/kernel/security\n\
                 echo '{line}' >/sys/kernel/security/lockdown\n{QUICKLY}"
            ));
            let doctor = Doctor::ask(&words(&wrapper), &[]);
            let lockdown = &doctor.json["lockdown"];
            assert_eq!(
                (text(lockdown, "mode"), &lockdown["ok"]),
                (mode, &ok.into())
            );
            assert_eq!(doctor.next().contains("lockdown=integrity"), !ok);
        }
    });
}

#[test]
fn hidden_addresses_degrade_gc_and_the_command_is_told() {
    leaving_nothing(|lock| {
        let path = "/proc/sys/kernel/kptr_restrict".to_owned();
        let _settings = Settings::set(lock, &[(path, "2".to_owned())]);
        let doctor = Doctor::ask(&[], &[]);
        assert!(doctor.will_do());
        let (state, reason) = doctor.hook("gc");
        assert_eq!(state, "degraded");
        assert!(reason.contains("kptr_restrict"), "{reason}");
        let command = "sysctl -w kernel.kptr_restrict=1";
        assert!(doctor.next().contains(command), "{}", doctor.next());
    });
}

#[test]
fn a_table_that_refused_gets_advice() {
    let mut lab = Lab::new();
    let pod = lab.pod("greedy", 1, 1);
    let limits = Thresholds::set(lab.lock(), [32, 64, 64]);
    burst(&pod, Family::V4, FIRST_SILENT, 150);
    let doctor = Doctor::ask(&words(&after(QUICKLY)), &[]);
    drop(limits);
    let tables = doctor.json["tables"].as_array().expect("it is a list");
    let advice = &tables[0]["advice"];
    assert!(text(advice, "reason").contains("refused"), "{advice}");
    let high = advice["gc_thresh"][2].as_u64().expect("it is a number");
    assert!(high >= 2 * 64, "{advice}");
    let line = format!("sysctl -w net.ipv4.neigh.default.gc_thresh3={high}");
    assert_eq!(advice["sysctl"][2], line);
}
