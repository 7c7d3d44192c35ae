use std::fs;

use super::*;

const UID: &str = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0";

fn tree(dirs: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for dir in dirs {
        fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    root
}

fn kubepods(root: &Path) -> Kubepods {
    let path = locate(root, None).unwrap();
    Kubepods {
        id: cgroup_id(&path).unwrap(),
        path,
        root: root.to_owned(),
    }
}

#[test]
fn the_names_that_kubelets_use_are_found() {
    for (dir, level) in [
        ("kubepods", 1),
        ("kubepods.slice", 1),
        ("kubelet/kubepods", 2),
        ("kubelet.slice/kubelet-kubepods.slice", 2),
        ("a/b/kubepods", 3),
    ] {
        let root = tree(&[dir, "system.slice/sshd.service", "user.slice"]);
        let found = kubepods(root.path());
        assert_eq!(found.path, root.path().join(dir));
        assert_eq!(found.level().unwrap(), level, "{dir}");
    }
}

#[test]
fn the_nearest_wins_and_equals_are_ambiguous() {
    let root = tree(&["kubepods", "nested/kubepods"]);
    assert_eq!(
        locate(root.path(), None).unwrap(),
        root.path().join("kubepods")
    );

    let root = tree(&["one/kubepods", "two/kubepods"]);
    let error = locate(root.path(), None).unwrap_err().to_string();
    assert!(error.contains("one/kubepods, two/kubepods"), "{error}");
    assert!(error.contains("--kubepods"), "{error}");
}

#[test]
fn a_given_path_is_used_and_checked() {
    let root = tree(&["one/kubepods", "two/kubepods"]);
    for given in ["two/kubepods", "/two/kubepods"] {
        let found = locate(root.path(), Some(Path::new(given))).unwrap();
        assert_eq!(found, root.path().join("two/kubepods"));
    }
    let refused = locate(root.path(), Some(Path::new("../etc"))).unwrap_err();
    assert!(matches!(refused, CgroupError::BadPath { .. }));
    let missing = locate(root.path(), Some(Path::new("three"))).unwrap_err();
    assert!(matches!(missing, CgroupError::NotFound { .. }));
}

#[test]
fn nothing_found_says_what_to_do() {
    let root = tree(&["system.slice", "a/b/c/kubepods"]);
    let error = locate(root.path(), None).unwrap_err().to_string();
    assert!(error.contains("--kubepods"), "{error}");
}

#[test]
fn inside_a_cgroup_namespace_the_level_is_unknown() {
    let root = tree(&["kubepods"]);
    fs::write(root.path().join("cgroup.events"), "populated 1\n").unwrap();
    assert!(matches!(
        kubepods(root.path()).level(),
        Err(CgroupError::NotRoot { .. })
    ));
}

#[test]
fn uids_are_read_from_both_drivers_names() {
    let systemd = UID.replace('-', "_");
    let hash = "5e0f1a2b3c4d5e6f708192a3b4c5d6e7";
    for (name, uid) in [
        (format!("pod{UID}"), Some(UID)),
        (format!("kubepods-burstable-pod{systemd}.slice"), Some(UID)),
        (format!("kubepods-pod{systemd}.slice"), Some(UID)),
        (
            format!("kubelet-kubepods-besteffort-pod{systemd}.slice"),
            Some(UID),
        ),
        (format!("pod{hash}"), Some(hash)),
        (format!("kubepods-burstable-pod{hash}.slice"), Some(hash)),
        ("besteffort".to_owned(), None),
        ("kubepods-besteffort.slice".to_owned(), None),
        ("cri-containerd-0123.scope".to_owned(), None),
        ("pod".to_owned(), None),
        ("podman stuff".to_owned(), None),
    ] {
        assert_eq!(pod_uid(&name).as_deref(), uid, "{name}");
    }
}

#[test]
fn pods_of_every_class_are_listed_and_containers_are_not() {
    let root = tree(&[
        "kubepods/podguaranteed",
        "kubepods/burstable/podburst/container",
        "kubepods/besteffort/podbest/podnotapod",
    ]);
    let found = kubepods(root.path());
    let pods = found.pods().unwrap();
    assert_eq!(
        pods.keys().collect::<Vec<_>>(),
        ["best", "burst", "guaranteed"]
    );
    let burst = root.path().join("kubepods/burstable/podburst");
    assert_eq!(
        pods["burst"],
        PodCgroup {
            id: cgroup_id(&burst).unwrap(),
            path: burst
        }
    );
    let id = |dir| cgroup_id(&root.path().join(dir)).unwrap();
    assert_eq!(
        found.qos_ids().unwrap(),
        [id("kubepods/besteffort"), id("kubepods/burstable")]
    );
}

#[test]
fn systemd_classes_below_a_prefix_are_known() {
    let slice = "kubelet.slice/kubelet-kubepods.slice";
    let best = format!("{slice}/kubelet-kubepods-besteffort.slice");
    let pod = format!("{best}/kubelet-kubepods-besteffort-podab_cd.slice");
    let root = tree(&[&pod]);
    let found = kubepods(root.path());
    assert_eq!(
        found.qos_ids().unwrap(),
        [cgroup_id(&root.path().join(best)).unwrap(), 0]
    );
    assert_eq!(found.pods().unwrap()["ab-cd"].path, root.path().join(pod));
}

#[test]
fn processes_are_collected_from_all_levels() {
    let root = tree(&["pod/a", "pod/b/c"]);
    for (file, text) in [
        ("pod", ""),
        ("pod/a", "12\n0\n"),
        ("pod/b", "7\n12\n"),
        ("pod/b/c", "9\n"),
    ] {
        fs::write(root.path().join(file).join("cgroup.procs"), text).unwrap();
    }
    assert_eq!(
        processes(&root.path().join("pod")),
        BTreeSet::from([0, 7, 9, 12])
    );
    assert_eq!(processes(&root.path().join("gone")), BTreeSet::new());
}

#[test]
fn static_pods_are_told_by_the_hash_that_only_the_kubelet_gives() {
    let hash = "0123456789abcdef0123456789abcdef";
    let systemd = "kubepods/burstable/kubepods-burstable-podfedcba9876543210fedcba9876543210.slice";
    let root = tree(&[
        &format!("kubepods/pod{hash}"),
        systemd,
        "kubepods/burstable/pod01234567-89ab-4def-8123-456789abcdef",
        "kubepods/besteffort/kubepods-besteffort-pod01234567_89ab_4def_8123_456789abcdef.slice",
        "kubepods/pod0123456789ABCDEF0123456789abcdef",
        "kubepods/pod0123456789abcdef0123456789abcde",
        // Within a pod's own cgroup it is that pod's.
        &format!("kubepods/poduid/pod{hash}"),
    ]);
    let found = kubepods(root.path()).static_pods().unwrap();
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(names, [hash, "fedcba9876543210fedcba9876543210"]);
    let own = cgroup_id(&root.path().join(format!("kubepods/pod{hash}"))).unwrap();
    assert_eq!(found[hash], own);
}
