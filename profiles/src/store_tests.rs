use super::*;
use crate::profile::tests::sample;
use crate::ready;

const BUILD_ID: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn what_is_saved_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("made/when/needed"));
    assert!(store.load(BUILD_ID).unwrap().is_none());
    let profile = sample(BUILD_ID);
    let path = store.save(&profile).unwrap();
    assert_eq!(store.load(BUILD_ID).unwrap(), Some(profile.clone()));
    assert_eq!(read(&path).unwrap(), profile);
    let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1, "no temporary file stays");
}

#[test]
fn a_file_that_is_not_it_is_an_error_and_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path());
    let path = folder.path().join(format!("{BUILD_ID}.json"));
    fs::write(&path, "hostile").unwrap();
    assert!(matches!(store.load(BUILD_ID), Err(StoreError::Bad(..))));
    fs::write(&path, sample(&BUILD_ID.replace('0', "1")).to_json()).unwrap();
    assert!(matches!(
        store.load(BUILD_ID),
        Err(StoreError::OtherBuild(_))
    ));
    let endless = fs::File::create(&path).unwrap();
    endless.set_len(1 << 40).unwrap();
    assert!(matches!(store.load(BUILD_ID), Err(StoreError::Bad(..))));
    store.save(&sample(BUILD_ID)).unwrap();
    assert_eq!(store.load(BUILD_ID).unwrap(), Some(sample(BUILD_ID)));
}

#[test]
fn a_build_id_names_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("profiles"));
    let outside = folder.path().join("0123456789abcdef.json");
    fs::write(outside, sample("../0123456789abcdef").to_json()).unwrap();
    for build_id in ["../0123456789abcdef", "", "0123456789ABCDEF", "short"] {
        assert!(store.load(build_id).unwrap().is_none(), "{build_id}");
        assert!(matches!(
            store.save(&sample(build_id)),
            Err(StoreError::NoBuildId)
        ));
    }
}

#[test]
fn ready_profiles_are_of_kernels_and_complete() {
    for profile in ready::all() {
        assert!(profile.is_current(), "{}", profile.kernel.release);
        let layouts = crate::Layouts::resolve(&profile).unwrap();
        for (module, missing) in layouts.modules() {
            assert_eq!(missing, None, "{module} of {}", profile.kernel.release);
        }
        let build_id = profile.kernel.build_id.clone().unwrap();
        assert_eq!(ready::find(&build_id), Some(profile));
    }
    assert_eq!(ready::find(""), None);
    assert_eq!(ready::find(BUILD_ID), None);
}
